"""Verify exactly what pays: cut any tree to the k nodes with the best expected tokens per second.

1. Every node's survival is the product of the learned acceptance estimates (calibration.py) down to it.
2. The best k nodes by survival are a subtree, since a child never survives its parent.
3. k = argmax of (1 + sum of their survivals) / (draft + overhead + verify(k + 1)); k = 0 is plain decoding.
4. Drafts that are made one token after the other are planned beforehand by the same rule over depth: how likely one of
   their drafter's tokens is right is learned level by level. What others propose beside it at no cost is not bounded.
5. Where others have proposed already, such a drafter goes on beside them only as far as it adds to what they promise.

The rule of DySpec (arXiv:2410.11744) and of vLLM's adaptive verification, with a cost curve that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segue.data import DraftTree
from segue.decode.speculative.budget.base import MOST, Budget, Costs
from segue.decode.speculative.budget.calibration import HOPELESS, Calibration, level

CLEARLY = 1.1  # times plain that a draft must promise: a smaller gain is within the error of the prediction
BUSHY = 3  # nodes of a level that a trained drafter proposes and that are worth verifying, about
SPARE = 4  # nodes proposed beyond what was worth verifying lately, so that a better text is noticed


class ExpectedGain:
    """One request's planner. `calibration`, of nodes, and `levels`, of drafters that draft one token after the other,
    may be shared with others; by default they know nothing."""

    def __init__(self, costs: Costs, calibration: Calibration | None = None, levels: Calibration | None = None) -> None:
        self._costs = costs
        self.calibration = calibration or Calibration()
        self._reach = 2 * SPARE
        self._levels = levels or Calibration()
        self._drafter, self._asked = "", False  # its name, and whether it showed a draft model's rows
        self._last: tuple[DraftTree | None, list[int]] = (
            None,
            [],
        )  # a tree that was looked at, and what of it is worth it
        self.rate = 1.0 / costs.verify(1)  # expected tokens per second of the last trimmed tree

    def plan(self, room: int) -> Budget:
        free = min(room, MOST)
        nodes = min(self._reach, MOST)
        if not self._costs.draft(1) > 0:
            return Budget(nodes, free, free, MOST)
        spent = self._spent(self._costs.draft, 1, 1, 1)
        depth, least = self._depth(self._drafter, spent, free, [], 1.0 / self._costs.verify(1))
        return Budget(nodes, depth, free, MOST, least)

    def beside(self, tree: DraftTree, drafter: str, draft: Callable[[int], float], room: int) -> Budget | None:
        """How far a drafter whose drafts of so many tokens take `draft` seconds should go on beside a tree that is
        there at no cost; None where that tree promises nearly as much without it."""
        known = [0.0] * (max(tree.depths) + 1)
        order, survival = self._worth(tree)
        for node in order:
            known[tree.depths[node]] += survival[node]
        rate, self._last = self.rate, (tree, order)
        spent = self._spent(draft, 1 + len(order), BUSHY, 2)  # two trees are made, merged and learned from
        depth, least = self._depth(drafter, spent, min(room, MOST), known[1:], CLEARLY * rate)
        return Budget(min(self._reach, MOST), depth, least=least) if depth else None

    def _spent(self, draft: Callable[[int], float], rows: int, wide: int, trees: int) -> Callable[[int], float]:
        """Seconds of a round by the depth of its draft, which brings `wide` nodes a level beside so many rows."""
        costs = self._costs
        return lambda depth: draft(depth) + trees * costs.overhead() + costs.verify(rows + wide * depth)

    def _depth(
        self, drafter: str, spent: Callable[[int], float], most: int, known: list[float], rate: float
    ) -> tuple[int, float]:
        """The best depth for a drafter, 0 where nothing beats `rate`, and what one more pass must promise. The text is
        `known` to be in a tree by depth; what the drafter adds is what it reaches more often."""
        best, survival = 0, 1.0
        expected = 1.0 + sum(known)
        for depth in range(1, most + 1):
            survival *= self._levels.estimate(level(drafter, depth))
            if survival < HOPELESS:
                break
            expected += max(survival - (known[depth - 1] if depth <= len(known) else 0.0), 0.0)
            if expected / spent(depth) > rate:
                best, rate = depth, expected / spent(depth)
        return best, rate * (spent(best + 1) - spent(best)) if best else 0.0

    def trim(self, tree: DraftTree) -> DraftTree:
        if any(tree.sampled):  # choosing among drawn tokens by what was drawn would bias the samples
            return tree
        asked, order = self._last
        if asked is not tree:
            order, _ = self._worth(tree)
        self._last = None, []
        self._reach = max(self._reach - 1, len(order) + SPARE)
        if 1 + len(order) + sum(tree.scored_only) == len(tree):
            return tree
        return tree.keep({0, *order, *(n for n in range(1, len(tree)) if tree.scored_only[n])})

    def _worth(self, tree: DraftTree) -> tuple[list[int], list[float]]:
        """The nodes that are worth verifying, and how likely every node of the tree is to be reached."""
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
        return order[:best], survival

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        if self._costs.draft(1) > 0:
            self._drafter = self._who(tree)
            # Rounds without its proposal count as well: what was seen fades, and it is tried again one day.
            self.learn_levels(tree, tokens, self._drafter)
        if len(tree) > 1:
            self.calibration.learn(tree, tokens)

    def learn_levels(self, tree: DraftTree, tokens: Sequence[int], drafter: str) -> None:
        """How far a drafter's own tokens went."""
        self._levels.learn_levels(tree, tokens, drafter)

    def _who(self, tree: DraftTree) -> str:
        """Who drafts one token after the other: the one whose tokens follow where a draft model was asked. Without such
        rows it is who proposed first, since what costs nothing is fused in behind."""
        proposed = [n for n in range(1, len(tree)) if not tree.scored_only[n]]
        asked = next((n for n in proposed if tree.parents[n] in tree.rows), None)
        self._asked = self._asked or asked is not None
        first = asked if self._asked else next(iter(proposed), None)
        return self._drafter if first is None else tree.source[first].split("+")[0]
