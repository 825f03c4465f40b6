"""A context that grows, is cut back and has gaps holds what the layer would make of the whole text at once."""

from __future__ import annotations

import pytest
import torch

from segue.laws.worlds import network_world
from segue.models.heads import KINDS
from segue.models.heads.context import SMALLEST, Attending, Context
from segue.models.lm import LM

ATTENDING = [cls for cls in KINDS.values() if issubclass(cls, Attending)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.mark.parametrize("cls", ATTENDING)
def test_rows_do_not_depend_on_when_they_were_computed(lm: LM, cls: type[Attending]) -> None:
    generator = torch.Generator().manual_seed(1)
    network = cls.fresh(lm).requires_grad_(False)
    total = 2 * SMALLEST + 7
    states = torch.randn(total, lm.width, generator=generator)
    ids = torch.randint(lm.vocab_size, (total + 1,), generator=generator).tolist()
    whole = Context(network, lm)
    whole.add(states, total)
    context = Context(network, lm)
    for start, stop in ((0, 5), (5, 6), (6, SMALLEST + 1), (SMALLEST + 1, total)):
        context.add(states[start:stop], stop)
        context.rows(ids)
    for mine, expected in zip(context.rows(ids), whole.rows(ids), strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)
    assert torch.equal(context.last, states[-1:])


@pytest.mark.parametrize("cls", ATTENDING)
def test_what_was_cut_leaves_no_trace(lm: LM, cls: type[Attending]) -> None:
    """The token behind the cut is another one, and so are the states behind it."""
    network = cls.fresh(lm).requires_grad_(False)
    one, other = torch.randn(9, lm.width), torch.randn(4, lm.width)
    context, fresh = Context(network, lm), Context(network, lm)
    context.add(one, 9)
    context.rows(list(range(10)))
    context.cut(5)
    assert context.length == 5
    ids = [0, 1, 2, 3, 4, 50, 51, 52, 53, 54]
    context.add(other, 9)
    fresh.add(torch.cat([one[:5], other]), 9)
    for mine, expected in zip(context.rows(ids), fresh.rows(ids), strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)


def test_states_behind_a_gap_are_not_kept(lm: LM) -> None:
    context = Context(KINDS["chimera"].fresh(lm), lm)
    context.add(torch.ones(3, lm.width), 3)
    context.add(torch.ones(2, lm.width), 6)
    assert context.length == 3
    context.add(2 * torch.ones(2, lm.width), 4)
    assert context.length == 4
    assert torch.equal(context.last, 2 * torch.ones(1, lm.width))
