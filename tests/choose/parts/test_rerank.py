"""Answers drawn side by side: one that meets a dead end is no candidate, and takes no other with it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from segue import catalog
from segue.data import ConstraintError, Settings
from segue.laws.base import decode
from segue.laws.worlds import toy_world
from segue.ops.automaton import Trie


def test_dead_ends_are_left_out_and_others_stay() -> None:
    """Behind 1 nothing is allowed, which only shows there."""
    lm = toy_world(3, 2).lm
    settings = Settings(max_tokens=3, temperature=5.0, seed=3, constraint=Trie(3, {2}, [(0, 0), (1, 1)]))
    (free,) = decode(lm, catalog.build("mbr", samples=24), [[0, 1]], settings)
    assert {tuple(c.tokens[:2]) for c in free.candidates or []} == {(0, 0), (1, 1)}
    settings = Settings(max_tokens=3, temperature=5.0, seed=3, constraint=Blind(3, {2}, [(0, 0), (1, 1)]))
    (answer,) = decode(lm, catalog.build("mbr", samples=24), [[0, 1]], settings)
    assert {tuple(c.tokens[:2]) for c in answer.candidates or []} == {(0, 0)}
    assert sum(1 for _ in answer.candidates or []) == 1


def test_where_all_are_dead_ends_the_request_fails() -> None:
    settings = Settings(max_tokens=3, temperature=5.0, seed=3, constraint=Blind(3, {2}, [(1, 1)]))
    with pytest.raises(ConstraintError, match="allows no token here"):
        decode(toy_world(3, 2).lm, catalog.build("mbr", samples=4), [[0, 1]], settings)


class Blind(Trie):
    """A list of texts that does not see its own dead end: behind 1 nothing is allowed."""

    def within(self, state: Any, budget: int) -> Tensor:
        mask = super().within(state, budget)
        return mask & False if state == self.step(self.start(), 1) else mask
