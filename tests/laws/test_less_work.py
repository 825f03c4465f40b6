from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from segue.data import DraftTree
from segue.decode.plain import Plain
from segue.decode.speculative.base import Budget, Speculative
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.laws.base import LawBroken
from segue.laws.less_work import counted, less_work
from segue.laws.suite import repetitive
from segue.laws.worlds import World, neighbour
from segue.models.run import Decoder, Run
from segue.models.transformers.lm import TransformersLM


@pytest.fixture
def lm(llama: World) -> Iterator[TransformersLM]:
    assert isinstance(llama.lm, TransformersLM)
    yield llama.lm
    llama.lm.companions.clear()
    llama.lm.reset_stores()


@dataclass(frozen=True)
class Disguise(Speculative):
    """Never proposes anything."""

    def start(self, run: Run) -> None:
        return None

    def propose(self, run: Run, state: None, budget: Budget) -> DraftTree:
        return DraftTree.root(run.ids[-1])


@dataclass(frozen=True)
class Boaster(TokenRecycling):
    """Reports half of its forwards."""

    def run(self, run: Run) -> Decoder[None]:
        yield from super().run(run)
        run.stats.target_forwards //= 2


@pytest.mark.parametrize("method", [Plain(), Disguise()])
def test_plain_decoding_in_disguise_is_found(method: Plain, lm: TransformersLM, llama: World) -> None:
    with pytest.raises(LawBroken, match="saves no work"):
        less_work(method, lm, repetitive(llama))


def test_forwards_that_were_not_reported_are_found(lm: TransformersLM, llama: World) -> None:
    with pytest.raises(LawBroken, match="reports"):
        less_work(Boaster(), lm, repetitive(llama))


def test_a_draft_model_is_counted_apart(lm: TransformersLM, llama: World) -> None:
    other = neighbour(lm)
    assert isinstance(other, TransformersLM)
    with counted(other) as count:
        stats = less_work(DraftModel(draft=other), lm, repetitive(llama))
    assert 0 < stats.draft_forwards <= count.forwards
    itself = less_work(DraftModel(draft=lm, gamma=3), lm, repetitive(llama))
    assert itself.accepted == itself.drafted > 0


def test_the_counter_is_removed(lm: TransformersLM) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), counted(lm):
        raise RuntimeError("on purpose")
    assert "forward" not in vars(lm)
