"""Successive halving on contestants whose speed is known: found, certain, honest, and cheap."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from segue.bench import contest as contest_module
from segue.bench.tune import PLAIN, Candidate, candidates, tune, words
from segue.data import Settings, Stats

PROMPTS = [[i] for i in range(27)]


@dataclass
class Clock:
    """Time that passes only when a contestant says so."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Known:
    """Answers in a known time, give or take."""

    name: str
    seconds: float
    clock: Clock
    noise: random.Random
    wrong: bool = False
    answers: int = 0

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        self.answers += 1
        self.clock.now += self.seconds * self.noise.uniform(0.8, 1.25)
        return ([99] if self.wrong else prompt) * 8, None

    def forget(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(contest_module, "time", found)
    return found


def pool(count: int) -> list[Candidate]:
    return [Candidate("lookahead", (("window", i),)) for i in range(count)]


def speeds(best: int, plain: float = 1.0) -> dict[str, float]:
    return {PLAIN: plain} | {c.name: 0.4 if i == best else 0.7 + 0.02 * i for i, c in enumerate(pool(12))}


@pytest.mark.parametrize("best", [0, 5, 11])
def test_the_fastest_is_found_for_less_than_everything_costs(clock: Clock, best: int) -> None:
    noise = random.Random(best)
    made: list[Known] = []

    def make(candidate: Candidate) -> Known:
        made.append(Known(candidate.name, speeds(best)[candidate.name], clock, noise))
        return made[-1]

    verdict = tune(pool(12), make, PROMPTS, Settings(), strict=True)
    assert verdict.winner == pool(12)[best]
    assert verdict.ratio[0] == pytest.approx(2.5, rel=0.1)
    assert verdict.ratio[1] > 2
    assert sum(player.answers for player in made) < 13 * 27 * 3 / 2
    assert "2." in " ".join(words(verdict, 27))


def test_plain_wins_where_all_are_slower(clock: Clock) -> None:
    noise = random.Random(1)
    times = speeds(3, plain=0.3)
    verdict = tune(pool(12), lambda c: Known(c.name, times[c.name], clock, noise), PROMPTS, Settings(), strict=True)
    assert verdict.winner == Candidate(PLAIN)
    assert "plain decoding is best here" in " ".join(words(verdict, 27))


def test_a_candidate_that_changes_a_token_is_out(clock: Clock) -> None:
    noise = random.Random(1)
    times = speeds(3)
    cheat = pool(12)[3].name

    def make(candidate: Candidate) -> Known:
        return Known(candidate.name, times[candidate.name], clock, noise, wrong=candidate.name == cheat)

    verdict = tune(pool(12), make, PROMPTS, Settings(), strict=True)
    assert verdict.winner.name != cheat
    assert verdict.disqualified == [cheat]
    kept = tune(pool(12), make, PROMPTS, Settings(), strict=False)
    assert kept.winner.name == cheat
    assert kept.ranking[0][2] == 0


def test_a_finished_rung_is_not_measured_again(clock: Clock, tmp_path: Path) -> None:
    times = speeds(3)

    def run() -> tuple[Candidate, int]:
        made = []

        def make(candidate: Candidate) -> Known:
            made.append(Known(candidate.name, times[candidate.name], clock, random.Random(0)))
            return made[-1]

        verdict = tune(
            pool(12), make, PROMPTS, Settings(), strict=True, journal=lambda number: tmp_path / f"{number}.jsonl"
        )
        return verdict.winner, sum(player.answers for player in made)

    first, answers = run()
    second, again = run()
    assert first == second
    assert answers > 0
    assert again == 0


def test_candidates_are_defaults_first_and_never_lossy() -> None:
    found = candidates(None, True, 0)
    assert found == candidates(None, True, 0)
    assert len(found) == len(set(found)) <= 24
    assert Candidate("auto") in found
    assert Candidate("draft_model") in found
    assert Candidate("draft_model") not in candidates(None, False, 0)
    assert not any(key == "lenience" for c in found for key, _ in c.fields)
    assert {c.method for c in candidates(["lookahead"], False, 0)} == {"lookahead"}
    assert not any(c.method == PLAIN for c in found)
