"""Thompson sampling of the draft length (EESD, arXiv:2406.03853): the acceptance is drawn from its posterior.

1. Draw theta ~ Beta(a, b), the chance that the next drafted token is accepted.
2. Draft the length that is best if theta is true: argmax over n of (1 + ... + theta^n) / (draft(n) + verify(n+1)).
3. After verification a grows by the accepted tokens and b by one if a rejection was seen; both are discounted, so that
   the posterior follows a text that changes. What lies behind a rejection is not observed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import MOST, Budget, Costs, reached

LONGEST = 16
DISCOUNT = 0.97  # a memory of some 30 rounds


class Thompson:
    """Its own generator draws theta: the draw decides how much is drafted, never what is emitted."""

    def __init__(self, costs: Costs, seed: int = 0) -> None:
        self._costs = costs
        self._random = random.Random(seed)
        self.accepted, self.rejected = 1.0, 1.0  # Beta(1, 1): nothing known

    def plan(self, room: int) -> Budget:
        theta = self._random.betavariate(self.accepted, self.rejected)
        return Budget(MOST, best_length(theta, self._costs, min(LONGEST, room)))

    def trim(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        drafted = max(tree.depths)
        kept = min(reached(tree, tokens), drafted)
        self.accepted = 1.0 + DISCOUNT * (self.accepted - 1.0) + kept
        self.rejected = 1.0 + DISCOUNT * (self.rejected - 1.0) + (kept < drafted)


def best_length(theta: float, costs: Costs, most: int) -> int:
    """The draft length with the highest expected tokens per second when every token is accepted with chance theta."""
    best, best_rate = 0, 1.0 / costs.verify(1)
    expected, survival = 1.0, 1.0
    for length in range(1, most + 1):
        survival *= theta
        expected += survival
        rate = expected / (costs.draft(length) + costs.verify(length + 1))
        if rate > best_rate:
            best, best_rate = length, rate
    return best
