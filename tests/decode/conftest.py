"""A tiny network for the methods, and an ear at its forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from segue.data import DraftTree, Scores
from segue.laws.worlds import World, network_world
from segue.models.lm import LM
from segue.models.sequence import Sequence


@dataclass
class Heard:
    """The forwards of one model: how many tokens were committed before, the tree, and the scores."""

    pasts: list[list[int]] = field(default_factory=list)
    trees: list[DraftTree] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


@pytest.fixture(scope="package")
def network() -> World:
    return network_world("gpt2")


@pytest.fixture
def world(network: World) -> Iterator[World]:
    """The network with nothing learned and no companions."""
    yield network
    network.lm.reset_stores()
    network.lm.companions.clear()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Callable[[LM], Heard]:
    """Records every forward of a model from now on."""

    def start(lm: LM) -> Heard:
        heard = Heard()
        forward = lm.forward

        def spy(asks: list[tuple[Sequence, DraftTree, object]]) -> list[Scores]:
            pasts = [list(sequence.tokens) for sequence, _, _ in asks]
            scores = forward(asks)  # type: ignore[arg-type]
            heard.pasts += pasts
            heard.trees += [tree for _, tree, _ in asks]
            heard.scores += scores
            return scores

        monkeypatch.setattr(lm, "forward", spy)
        return heard

    return start
