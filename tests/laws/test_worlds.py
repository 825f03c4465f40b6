from __future__ import annotations

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.laws.worlds import FAMILIES, TEXT_TO_TEXT, neighbour, network, network_world, toy_world
from segue.models.lm import LM


@pytest.mark.parametrize("family", [*FAMILIES, *TEXT_TO_TEXT])
def test_networks_write_varied_texts_and_have_neighbours(family: str) -> None:
    state = torch.get_rng_state()
    world = network_world(family)
    texts = [tuple(world.oracle.answer(p, Settings(max_tokens=20)).tokens) for p in world.prompts]
    assert len(set(texts)) == len(texts)
    assert max(len(set(text)) for text in texts) > 5
    other = neighbour(world.lm)
    same = [int(a == b) for a, b in zip(first_tokens(world.lm), first_tokens(other), strict=True)]
    assert 0 < sum(same) < len(same)
    assert torch.equal(state, torch.get_rng_state())


def first_tokens(lm: LM) -> list[int]:
    tree = DraftTree.chain([t % lm.vocab_size for t in range(60)])
    (scores,) = lm.forward([(lm.sequence(), tree, Want())])
    return scores.argmax()


@pytest.mark.parametrize("family", [*FAMILIES, *TEXT_TO_TEXT])
def test_a_seed_is_a_network_whatever_was_drawn_before(family: str) -> None:
    torch.manual_seed(1)
    first = network(family, seed=3)
    torch.manual_seed(2)
    second = network(family, seed=3)
    other = network(family, seed=4)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_two_families_keep_a_sliding_window() -> None:
    assert network("gemma2").config.layer_types.count("sliding_attention") == 1
    assert network("qwen3").config.layer_types.count("sliding_attention") == 1


def test_neighbours_of_a_table() -> None:
    world = toy_world(4)
    other = neighbour(world.lm)
    assert 0 < sum(a != b for a, b in zip(first_tokens(world.lm), first_tokens(other), strict=True)) < 60


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="there are llama"):
        network("perceptron")
