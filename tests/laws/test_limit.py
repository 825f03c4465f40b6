from __future__ import annotations

import pytest

from segue.card import Limit
from segue.data import Settings
from segue.decode.speculative.draft_model import DraftModel
from segue.laws.base import LawBroken
from segue.laws.limit import Case, limit
from segue.laws.worlds import neighbour, toy_world
from segue.models.lm import LM

LENIENCE = Limit(knob="lenience", exact_at=1.0)


def lenient(lm: LM, value: float) -> DraftModel:
    return DraftModel(draft=neighbour(lm), gamma=2, lenience=value)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    worlds = [toy_world(3, seed=seed) for seed in range(3)]
    return [(world.lm, world.prompts[-1], Settings(temperature=1.0, max_tokens=3)) for world in worlds]


def test_the_divergence_shrinks_to_nothing(cases: list[Case]) -> None:
    means = limit(lenient, LENIENCE, cases)
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.05
    assert means[-1] < 1e-9


def test_a_knob_that_does_not_reach_exactness_is_found(cases: list[Case]) -> None:
    with pytest.raises(LawBroken, match="should be exact"):
        limit(lambda lm, value: lenient(lm, value / 2), LENIENCE, cases)


def test_a_knob_that_does_nothing_is_found(cases: list[Case]) -> None:
    with pytest.raises(LawBroken, match="does not shrink"):
        limit(lambda lm, value: lenient(lm, 0.5 if value < 1 else 1.0), LENIENCE, cases)


def test_the_way_must_lead_to_the_exact_value(cases: list[Case]) -> None:
    with pytest.raises(ValueError, match="the last must be"):
        limit(lenient, LENIENCE, cases, values=(0.5, 0.9))
