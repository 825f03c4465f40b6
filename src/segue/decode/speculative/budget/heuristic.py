"""The schedule of transformers' assisted generation: two more after a full acceptance, one less otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import MOST, Budget, Costs, reached


class Heuristic:
    """Knows no costs."""

    def __init__(self, costs: Costs, depth: int = 5) -> None:
        self.depth = depth

    def plan(self, room: int) -> Budget:
        return Budget(MOST, min(self.depth, room))

    def trim(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        drafted = max(tree.depths)
        if drafted:
            change = 2 if reached(tree, tokens) >= drafted else -1
            self.depth = min(max(self.depth + change, 1), MOST)
