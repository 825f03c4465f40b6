from __future__ import annotations

import pytest
import torch

from segue.laws.worlds import network_world
from segue.models.heads.chimera import ChimeraNetwork, grams_of
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@torch.no_grad()
def guesses(lm: LM, network: ChimeraNetwork, lesson: Lesson) -> list[float]:
    return [float(loss) for loss in network.learn(lm, lesson).losses]


@pytest.fixture
def lesson(lm: LM) -> Lesson:
    """Eight tokens, of which the last but one alone is to be guessed: from the sixth, place 1."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocab_size, (1, 8), generator=generator)
    own = torch.zeros(1, 8, dtype=torch.bool)
    own[0, 6] = True
    return Lesson(ids, own, {-1: torch.randn(1, 8, lm.width, generator=generator)})


def changed(lesson: Lesson, *, state: int | None = None, token: int | None = None) -> Lesson:
    states, ids = lesson.states[-1].clone(), lesson.ids.clone()
    if state is not None:
        states[0, state] += 1
    if token is not None:
        ids[0, token] = (ids[0, token] + 1) % 90
    return Lesson(ids, lesson.own, {-1: states})


def test_the_first_token_stands_for_those_before_it() -> None:
    assert grams_of(torch.tensor([0, 1, 4]), 3).tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4]]


def test_at_first_the_heads_are_two_copies_of_the_models(lm: LM) -> None:
    """Published initialisation: logits = W h + W o. With a layer that says nothing, o is the trigram vector."""
    network = ChimeraNetwork.fresh(lm).requires_grad_(False)
    network.attention.out.weight.zero_()
    network.feed.down.weight.zero_()
    vectors, last = torch.randn(2, 1, lm.width)
    context = network.attention.rows(torch.randn(4, lm.width), range(4))
    features, _ = network(0, vectors, range(4, 5), last, context, None)
    assert torch.allclose(features, vectors + last)
    with torch.no_grad():
        network.up[0] += 1
    features, _ = network(0, vectors, range(4, 5), last, context, None)
    added = (network.down[0] @ torch.cat([last, vectors], -1)[0]).sum()
    assert torch.allclose(features, vectors + last + added, atol=1e-5)


def test_a_trigram_is_a_residual_block_of_three_tokens(lm: LM) -> None:
    network = ChimeraNetwork.fresh(lm, grain=4).requires_grad_(False)
    x = network.grain(lm.embed(torch.tensor([3, 1, 2]))).flatten()
    assert x.shape == (12,)
    assert torch.allclose(network.newest(lm, torch.tensor([3, 1, 2])), network.trigram(x), atol=1e-6)
    with torch.no_grad():
        network.residual[:, 0] = 1.0
    x[0] += torch.nn.functional.silu(x.sum())
    # SiLU(0) is 0: only the first number changed.
    assert torch.allclose(network.newest(lm, torch.tensor([3, 1, 2])), network.trigram(x), atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_all_that_was_read_and_nothing_later_counts(lm: LM, lesson: Lesson, heads: int) -> None:
    network = ChimeraNetwork.fresh(lm, heads=heads).requires_grad_(False)
    plain = guesses(lm, network, lesson)
    for state in range(8):
        moved = guesses(lm, network, changed(lesson, state=state))
        # Place i guesses the seventh token behind the state of token 5 - i.
        for place, (before, after) in enumerate(zip(plain, moved, strict=True)):
            assert (before != after) == (state <= 4 - place), (state, place)
    for token in range(8):
        moved = guesses(lm, network, changed(lesson, token=token))
        assert (plain[0] != moved[0]) == (token in (3, 4, 5, 6)), token


def test_without_its_context_the_layer_sees_one_state(lm: LM, lesson: Lesson) -> None:
    network = ChimeraNetwork.fresh(lm, heads=1, near=True).requires_grad_(False)
    (plain,) = guesses(lm, network, lesson)
    for state in range(8):
        assert (guesses(lm, network, changed(lesson, state=state)) != [plain]) == (state == 4), state


def test_without_its_trigram_the_layer_sees_one_token(lm: LM, lesson: Lesson) -> None:
    network = ChimeraNetwork.fresh(lm, heads=1, grams=1).requires_grad_(False)
    (plain,) = guesses(lm, network, lesson)
    for token in range(6):
        assert (guesses(lm, network, changed(lesson, token=token)) != [plain]) == (token == 5), token


def test_every_weight_learns(lm: LM, lesson: Lesson) -> None:
    network = ChimeraNetwork.fresh(lm, heads=2)
    with torch.no_grad():
        network.up.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(network.learn(lm, lesson).loss)
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.abs().sum() > 0), name
