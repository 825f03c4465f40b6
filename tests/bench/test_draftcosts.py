"""Costs of two models that take turns, on a clock that the models themselves move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from segue.bench import draftcosts
from segue.bench.draftcosts import together
from segue.data import Scores
from segue.models.cost import Cost
from segue.models.toy import ToyLM


class Clock:
    """Time passes only in forwards; a forward of another model than the last one takes `cold` more."""

    def __init__(self, cold: float) -> None:
        self.now, self.cold, self.last = 0.0, cold, ""

    def perf_counter(self) -> float:
        return self.now


class Timed(ToyLM):
    clock: Clock
    curve: Cost

    @property
    def cost(self) -> Cost:
        return self.curve

    def forward(self, asks: Sequence[Any]) -> list[Scores]:
        self.clock.now += self.curve.step(len(asks[0][1])) + self.clock.cold * (self.clock.last != self.name)
        self.clock.last = self.name
        return super().forward(asks)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[Timed, Timed]]:
    def make(cold: float) -> tuple[Timed, Timed]:
        clock = Clock(cold)
        monkeypatch.setattr(draftcosts, "time", clock)
        models = Timed(3, seed=0), Timed(3, seed=1)
        for lm, seconds in zip(models, ((0.010, 0.011, 0.013, 0.020), (0.001, 0.002, 0.003, 0.004)), strict=True):
            lm.clock, lm.curve = clock, Cost((1, 2, 4, 16), seconds, 0.5)
        return models

    return make


def test_without_an_effect_the_curves_are_those_of_each_alone(pair: Any) -> None:
    target, draft = pair(0.0)
    curves = together(target, draft, [0, 1] * 20, 3)
    for lm, curve in zip((target, draft), curves, strict=True):
        assert curve.seconds == pytest.approx(lm.cost.seconds)
        assert (curve.rows, curve.overhead) == (lm.cost.rows, 0.5)


def test_a_change_of_model_is_paid_where_it_falls(pair: Any) -> None:
    target, draft = pair(0.005)
    verify, step = together(target, draft, [0, 1] * 20, 3)
    # Plain decoding never changes models, each verification follows a draft; 16 rows are as much dearer as 4 were.
    assert verify.seconds == pytest.approx((0.010, 0.016, 0.018, 0.020 * 18 / 13))
    # The draft's first step after the target is dearer than the next ones, once a round.
    assert step.seconds == pytest.approx(draft.cost.seconds)
    assert verify.overhead == pytest.approx(0.5 + 0.005)


def test_the_sequences_are_given_back_and_time_is_limited(pair: Any) -> None:
    target, draft = pair(1.0)
    seen: list[tuple[int, int]] = []
    together(target, draft, [0], 1, progress=lambda done, total: seen.append((done, total)))
    # Three turns are made whatever they take; the fourth would begin after the budget.
    assert [done for done, _ in seen] == [0, 1, 2, 3, draftcosts.TURNS]
    target.context_length = 3
    with pytest.raises(ValueError, match="no room for a round of 8 drafted tokens"):
        together(target, draft, [0], 8)
