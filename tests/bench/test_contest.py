"""Contestants take turns, each with its own memory; a killed contest goes on; nothing foreign is continued."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import segue
from segue.bench.contest import Ours, contest
from segue.data import Settings, Stats
from tests.models.families import network


@dataclass
class Recorder:
    """Answers with its prompt and notes the order on a list shared by all."""

    name: str
    heard: list[tuple[str, int]]
    forgotten: int = 0
    after: int | None = None  # answers until it is killed
    seen: list[int] = field(default_factory=list)

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        if self.after is not None and len(self.seen) >= self.after:
            raise KeyboardInterrupt
        self.seen.append(prompt[0])
        self.heard.append((self.name, prompt[0]))
        return list(prompt), None

    def forget(self) -> None:
        self.forgotten += 1


PROMPTS = [[1, 2], [3], [4]]


def test_turns_rotate_and_every_round_starts_fresh() -> None:
    heard: list[tuple[str, int]] = []
    players = [Recorder("a", heard), Recorder("b", heard)]
    rows = contest(players, PROMPTS, Settings(), rounds=2)
    measured = heard[4:]  # two prompts each to warm up
    assert measured[:6] == [("a", 1), ("b", 1), ("b", 3), ("a", 3), ("a", 4), ("b", 4)]
    assert measured[6][0] == "b"
    assert [p.forgotten for p in players] == [2, 2]
    assert [len(r) for r in rows[0].seconds] == [3, 3]
    assert rows[1].tokens == PROMPTS


def test_a_killed_contest_goes_on_with_the_next_round(tmp_path: Path) -> None:
    journal = tmp_path / "x.journal.jsonl"
    heard: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        contest(
            [Recorder("a", heard, after=2 + 3 + 1)], PROMPTS, Settings(), rounds=3, journal=journal, setting={"n": 1}
        )
    with journal.open("a") as file:
        file.write('{"round": 1, "rows": [')  # what a kill may leave
    again = Recorder("a", [])
    (row,) = contest([again], PROMPTS, Settings(), rounds=3, journal=journal, setting={"n": 1})
    assert len(row.seconds) == 3
    assert len(again.seen) == 2 + 2 * 3
    finished = Recorder("a", [])
    contest([finished], PROMPTS, Settings(), rounds=3, journal=journal, setting={"n": 1})
    assert finished.seen == []
    with pytest.raises(ValueError, match="another contest"):
        contest([finished], PROMPTS, Settings(), rounds=3, journal=journal, setting={"n": 2})
    journal.write_text("hello\n")
    with pytest.raises(ValueError, match="no journal"):
        contest([finished], PROMPTS, Settings(), rounds=3, journal=journal, setting={"n": 2})


def test_nobody_profits_from_what_another_learned(tmp_path: Path) -> None:
    network("llama").save_pretrained(tmp_path)
    model = segue.model(tmp_path)
    method = segue.method("token_recycling")
    prompt = [5, 9, 17, 5, 9]
    alone = contest([Ours("a", model, method)], [prompt], Settings(max_tokens=12), rounds=1)
    both = contest([Ours(n, model, method) for n in "ab"], [prompt], Settings(max_tokens=12), rounds=1)
    forwards = [row.stats[0]["target_forwards"] for row in (*alone, *both)]
    assert len(set(forwards)) == 1
