"""Likeness of answers against sums over transformers' own log-probabilities."""

from __future__ import annotations

import pytest
import torch

from segue.bench.likeness import likeness, nats
from segue.laws.worlds import World, network_world


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


def by_transformers(world: World, text: list[int], given: int) -> float:
    with torch.no_grad():
        logp = world.oracle.network(input_ids=torch.tensor([text])).logits[0].float().log_softmax(-1)  # type: ignore[attr-defined]
    return -sum(float(logp[place - 1, text[place]]) for place in range(given, len(text)))


def test_nats_are_those_of_the_tokens_behind_what_is_given(world: World) -> None:
    found = nats(world.lm, TEXTS, [3, 1])
    assert found == pytest.approx([by_transformers(world, TEXTS[0], 3), by_transformers(world, TEXTS[1], 1)], rel=1e-4)
    assert nats(world.lm, TEXTS[:1], [8]) == [0]
    for given in (0, 4):
        with pytest.raises(ValueError, match=f"{given} given tokens of a text of 3 is not allowed"):
            nats(world.lm, TEXTS[1:], [given])


def test_same_tokens_are_counted_place_by_place(world: World) -> None:
    answers, others = [[4, 1, 5], [7, 1]], [[4, 2, 5, 9], [1, 7]]
    found = likeness(world.lm, [[3, 1], [2]], answers, others)
    assert (found["written"], found["same"]) == ([3, 2], [2, 0])
    expected = [by_transformers(world, [3, 1, 4, 1, 5], 2), by_transformers(world, [2, 7, 1], 1)]
    assert found["nats"] == pytest.approx(expected, abs=2e-3)
