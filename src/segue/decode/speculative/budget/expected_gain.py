"""Verify exactly what pays: cut any tree to the k nodes with the best expected tokens per second.

1. Every node's survival is the product of the learned acceptance estimates (calibration.py) down to it.
2. The best k nodes by survival are a subtree, since a child never survives its parent.
3. k = argmax of (1 + sum of their survivals) / (draft + overhead + verify(k + 1)); k = 0 is plain decoding.
4. Drafts that are made one token after the other are planned beforehand by the same rule over depth: how likely one of
   their drafter's tokens is right is learned level by level. What others propose beside it at no cost is not bounded.

The rule of DySpec (arXiv:2410.11744) and of vLLM's adaptive verification, with a cost curve that is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import MOST, Budget, Costs
from segue.decode.speculative.budget.calibration import DEEPEST, Calibration

CLEARLY = 1.1  # times plain that a draft must promise: a smaller gain is within the error of the prediction
SPARE = 4  # nodes proposed beyond what was worth verifying lately, so that a better text is noticed


class ExpectedGain:
    """One request's planner. `calibration` may be shared with others; by default it knows nothing."""

    def __init__(self, costs: Costs, calibration: Calibration | None = None) -> None:
        self._costs = costs
        self.calibration = calibration or Calibration()
        self._reach = 2 * SPARE
        self._levels = Calibration()  # of who drafts one token after the other
        self._drafter, self._asked = "", False  # its name, and whether it showed a draft model's rows
        self.rate = 1.0 / costs.verify(1)  # expected tokens per second of the last trimmed tree

    def plan(self, room: int) -> Budget:
        free = min(room, MOST)
        depth = self._best_depth(free) if self._costs.draft(1) > 0 else free
        return Budget(min(self._reach, MOST), depth, free)

    def _best_depth(self, most: int) -> int:
        best, best_rate = 0, 1.0 / self._costs.verify(1)
        expected, survival = 1.0, 1.0
        for depth in range(1, most + 1):
            survival *= self._levels.estimate((self._drafter, 1.0, min(depth, DEEPEST)))
            expected += survival
            rate = expected / (self._costs.draft(depth) + self._costs.overhead() + self._costs.verify(depth + 1))
            if rate > best_rate:
                best, best_rate = depth, rate
        return best

    def trim(self, tree: DraftTree) -> DraftTree:
        if any(tree.sampled):  # choosing among drawn tokens by what was drawn would bias the samples
            return tree
        verify = self._costs.verify
        survival = self.calibration.survivals(tree)
        fixed = 1 + sum(tree.scored_only)
        order = sorted((n for n in range(1, len(tree)) if not tree.scored_only[n]), key=lambda n: (-survival[n], n))
        best, expected = 0, 1.0
        plain = self.rate = 1.0 / verify(fixed)
        for count, node in enumerate(order, start=1):
            expected += survival[node]
            rate = expected / (verify(fixed + count) + self._costs.overhead())
            if rate > self.rate:
                best, self.rate = count, rate
        if self.rate < CLEARLY * plain:
            best, self.rate = 0, plain
        self._reach = max(self._reach - 1, best + SPARE)
        if best == len(order):
            return tree
        return tree.keep({0, *order[:best], *(n for n in range(1, len(tree)) if tree.scored_only[n])})

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        if self._costs.draft(1) > 0:
            self._drafter = self._who(tree)
            # Rounds without its proposal count as well: what was seen fades, and it is tried again one day.
            self._levels.learn_levels(tree, tokens, self._drafter)
        if len(tree) > 1:
            self.calibration.learn(tree, tokens)

    def _who(self, tree: DraftTree) -> str:
        """Who drafts one token after the other: the one whose tokens follow where a draft model was asked. Without such
        rows it is who proposed first, since what costs nothing is fused in behind."""
        proposed = [n for n in range(1, len(tree)) if not tree.scored_only[n]]
        asked = next((n for n in proposed if tree.parents[n] in tree.rows), None)
        self._asked = self._asked or asked is not None
        first = asked if self._asked else next(iter(proposed), None)
        return self._drafter if first is None else tree.source[first].split("+")[0]
