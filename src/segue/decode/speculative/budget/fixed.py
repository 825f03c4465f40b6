"""The controller without opinion: always as much as the drafter likes, but never past the end of the output."""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import Budget, Costs

EVERYTHING = 512


class Fixed:
    """The drafter's own fields decide."""

    def __init__(self, costs: Costs, depth: int = EVERYTHING) -> None:
        self.depth = depth

    def plan(self, room: int) -> Budget:
        return Budget(EVERYTHING, min(self.depth, room))

    def trim(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        pass
