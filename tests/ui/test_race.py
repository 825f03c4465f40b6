"""Races: the offline answer on both sides, clocks of their own, and ends that leave nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from segue.api import Model
from segue.data import DraftTree, Want
from segue.models.run import Forward, Run
from segue.ui import race as module
from segue.ui.asked import Form, requests
from segue.ui.race import Race, Side
from tests.ui.conftest import PROMPT


def raced(lm: Model, left: str, right: str, *, tokens: int = 24, fields: tuple[str, str] = ("", "")) -> Race:
    return Race(lm, requests(Form(PROMPT, (left, right), fields, tokens, 0, 0), lm))


def drive(race: Race) -> Race:
    with torch.no_grad():
        race.drive()
    assert race.finished.is_set()
    return race


@pytest.mark.parametrize("names", [("auto", "plain"), ("lookahead", "prompt_lookup"), ("beam", "contrastive_search")])
def test_both_sides_write_what_they_write_alone(lm: Model, names: tuple[str, str]) -> None:
    race = drive(raced(lm, *names))
    for side, name in zip(race.sides, names, strict=True):
        alone = lm.generate(PROMPT, name, max_tokens=24)
        assert side.completion is not None
        assert side.completion.tokens == alone.tokens
        assert side.text == side.completion.text == alone.text
        assert len(side.pieces) == len(side.log.origins) == len(alone.tokens)


def test_no_forward_is_shared_and_clocks_are_apart(lm: Model) -> None:
    begin = time.perf_counter()
    left, right = drive(raced(lm, "token_recycling", "token_recycling")).sides
    whole = time.perf_counter() - begin
    assert left.completion is not None
    assert right.completion is not None
    assert left.completion.stats.target_forwards == right.completion.stats.target_forwards
    # Had the second learned from the first's text, it would have accepted more.
    assert left.completion.stats.accepted == right.completion.stats.accepted
    assert left.log.steps == right.log.steps
    assert 0 < left.seconds + right.seconds <= whole
    for side in (left, right):
        parts = side.split
        total = parts.prefill + parts.drafting + parts.verifying + parts.rest
        assert total == pytest.approx(side.seconds, rel=1e-6)
        assert min(parts.prefill, parts.verifying) > 0


def test_the_side_that_has_used_less_time_goes_next(lm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    race = raced(lm, "plain", "plain", tokens=12)
    order: list[tuple[bool, float]] = []
    original = Side.step

    def step(side: Side) -> None:
        other = race.sides[side is race.sides[0]]
        order.append((other.over, other.seconds - side.seconds))
        original(side)

    monkeypatch.setattr(Side, "step", step)
    drive(race)
    assert all(over or ahead >= 0 for over, ahead in order)
    assert len(order) >= 24


def test_memories_of_drafters_are_left_as_they_were(lm: Model) -> None:
    lm.reset()
    before = lm.lm.stores
    drive(raced(lm, "auto", "token_recycling"))
    assert lm.lm.stores is before
    assert before == {}
    lm.generate(PROMPT, "auto", max_tokens=2)
    assert before != {}  # where it keeps them otherwise
    lm.reset()


class Endless:
    """Writes for ever, one token a forward; calls back before each."""

    def __init__(self, called: Any) -> None:
        self.called = called

    def run(self, run: Run) -> Iterator[Any]:
        scores = yield from run.prefill()
        while True:
            run.emit([5], scores, [-1])
            self.called(run)
            scores = yield Forward(run.sequence, DraftTree.root(5), Want())
            run.sequence.commit([0])


def endless(lm: Model, called: Any) -> Race:
    race = raced(lm, "plain", "plain", tokens=900)
    left, right = race.requests
    return Race(lm, (type(left)(left.prompt, Endless(called), left.settings), right))  # type: ignore[arg-type]


def test_stop_ends_both_and_frees_their_memory(lm: Model) -> None:
    runs: list[Run] = []

    def called(run: Run) -> None:
        runs.append(run)
        if len(runs) == 5:
            race.stop()

    race = endless(lm, called)
    drive(race)
    assert race.stopped == "stopped"
    assert len(runs) == 5
    for side in race.sides:
        assert side.completion is None
        assert side.run is not None
        assert len(side.run.sequence) == 0  # released
        assert side._engine is None
    assert race.sides[0].text  # what was written can still be read


def test_a_race_that_nobody_looks_at_is_stopped(lm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEGLECT", 0.2)
    seen = [0]

    def called(_: Run) -> None:
        seen[0] += 1
        time.sleep(0.01)
        if seen[0] < 40:
            race.look()

    race = endless(lm, called)
    drive(race)
    assert race.stopped == "stopped: the page was closed"
    assert seen[0] >= 40


def test_a_side_that_fails_leaves_the_other(lm: Model, caplog: pytest.LogCaptureFixture) -> None:
    race = drive(raced(lm, "rest", "plain", tokens=6))
    assert race.sides[0].trouble is not None
    assert "datastore" in race.sides[0].trouble
    assert race.sides[1].completion is not None

    def called(_: Run) -> None:
        raise KeyError("a secret path")

    race = endless(lm, called)
    threading.Timer(0.3, race.stop).start()
    drive(race)
    assert race.sides[0].trouble == "this run failed; the terminal of segue ui says why"
    assert "a secret path" in caplog.text


def test_half_characters_are_text_once_they_are_whole(lm: Model) -> None:
    race = raced(lm, "plain", "plain", tokens=40)
    spelled = lm.lm.encode("naïve 東京 🙂 end")

    class Speller:
        def run(self, run: Run) -> Iterator[Any]:
            scores = yield from run.prefill()
            for token in spelled:
                if not run.emit([token], scores, [-1]):
                    return
                scores = yield Forward(run.sequence, DraftTree.root(token), Want())
                run.sequence.commit([0])
            run.finish("stop")

    left, right = race.requests
    one, _ = drive(Race(lm, (type(left)(left.prompt, Speller(), left.settings), right))).sides  # type: ignore[arg-type]
    assert one.completion is not None
    assert one.text == one.completion.text
    assert "\ufffd" not in one.text
    assert "東京 🙂 end" in one.text
    assert len(one.pieces) == len(spelled)
