"""The first layers read tokens one by one, the others all of them at once: together a whole forward."""

from __future__ import annotations

import pytest
import torch

from segue.data import DraftTree, Want
from segue.laws.worlds import FAMILIES, World, network_world

DRAFT = [5, 17, 80, 3, 41]


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest) -> World:
    return network_world(request.param)


def begun(world: World, prompt: list[int]):  # type: ignore[no-untyped-def]
    sequence = world.lm.sequence()
    world.lm.forward([(sequence, DraftTree.chain(prompt), Want(logits="none"))])
    sequence.commit(list(range(len(prompt))))
    return sequence


@pytest.mark.parametrize("kept", [1, 2, 5])
@pytest.mark.parametrize("prompt", [2, 33])  # the second lets the buffers grow while rows wait
def test_resumed_logits_are_those_of_a_whole_forward(world: World, prompt: int, kept: int) -> None:
    lm, text = world.lm, [(7 * i) % 96 for i in range(prompt)]
    whole = begun(world, text)
    (expected,) = lm.forward([(whole, DraftTree.chain(DRAFT), Want(hidden=(1,)))])
    first, other = begun(world, text), begun(world, text[::-1])
    mark, states = first.mark(), []
    for token in DRAFT:
        asks = [(first, DraftTree.root(token), Want(logits="none", layers=(0,), hidden=(1,)))]
        (scores,) = lm.forward(asks)
        first.commit([0])
        states.append(scores.hidden[1])
    torch.testing.assert_close(torch.cat(states), expected.hidden[1], atol=1e-5, rtol=1e-5)
    first.reopen(mark)
    assert len(first) == len(text)
    (resumed,) = lm.forward([(first, DraftTree.chain(DRAFT), Want(layers=(1,), states=torch.cat(states)))])
    torch.testing.assert_close(resumed.logits, expected.logits, atol=1e-5, rtol=1e-5)
    # What is committed is a past like any other, and what is not is gone.
    for sequence in (first, whole):
        sequence.commit(list(range(kept)))
    after, straight = (lm.forward([(s, DraftTree.chain([9, 9]), Want())])[0] for s in (first, whole))
    torch.testing.assert_close(after.logits, straight.logits, atol=1e-5, rtol=1e-5)
    assert other.tokens == text[::-1]


def test_rows_that_wait_are_forgotten_by_a_rollback(world: World) -> None:
    lm, text = world.lm, [1, 2, 3]
    sequence = begun(world, text)
    mark = sequence.mark()
    (scores,) = lm.forward([(sequence, DraftTree.root(4), Want(logits="none", layers=(0,), hidden=(1,)))])
    sequence.commit([0])
    sequence.reopen(mark)
    sequence.rollback(mark)
    (again,) = lm.forward([(sequence, DraftTree.chain([4, 5]), Want())])
    (expected,) = lm.forward([(begun(world, text), DraftTree.chain([4, 5]), Want())])
    assert torch.equal(again.logits, expected.logits)
    with pytest.raises(ValueError, match="cannot reopen at length 9"):
        sequence.reopen(type(mark)(9, None))
    assert scores.hidden[1].shape == (1, lm.width)
