"""Tiers of depth that follow a moving average of the accepted length, with hysteresis, as SGLang's adaptive mode does.

The average moves by ALPHA a round. After a warm-up, every EVERY rounds, the target is the rounded average plus one; the
tier is the smallest that holds it. Going down needs the average to lie MARGIN below, so that noise does not flip tiers.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import MOST, Budget, Costs, reached

TIERS = (1, 3, 7, 15)
ALPHA, WARM_UP, EVERY, MARGIN = 0.2, 10, 5, 0.25


class EMA:
    """Knows no costs."""

    def __init__(self, costs: Costs) -> None:
        self.depth = 3
        self.average = 2.0  # accepted tokens a round
        self._rounds = 0

    def plan(self, room: int) -> Budget:
        return Budget(MOST, min(self.depth, room))

    def trim(self, tree: DraftTree) -> DraftTree:
        return tree

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        if len(tree) == 1:
            return
        self.average += ALPHA * (reached(tree, tokens) - self.average)
        self._rounds += 1
        if self._rounds < WARM_UP or self._rounds % EVERY:
            return
        up, down = _tier(self.average), _tier(self.average + MARGIN)
        if up > self.depth:
            self.depth = up
        elif down < self.depth:
            self.depth = down


def _tier(average: float) -> int:
    target = round(average) + 1
    return next((tier for tier in TIERS if tier >= target), TIERS[-1])
