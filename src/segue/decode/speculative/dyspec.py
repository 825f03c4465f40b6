"""DySpec: every node of the tree goes where the draft expects the most to be accepted, anew in each round.

The value of a place is the chance that verification comes there: the product of the draft's probabilities of what must
be accepted above it and of what must be refused before it.
1. A heap holds open places: (v, node x, residual R), at first (1, root, q(root)).
2. Take the place of largest v; draw y from R (without replacement), the next child of x.
3. Two places open: below y with v * R(y), and beside it at x with v * (1 - R(y)) and R without y.
4. Until m nodes are there. A row of the draft is asked for when a place below a node is taken; all nodes without one
   are scored in that forward.
5. The layer-wise form fills every place of v >= theta level by level: as many draft forwards as levels.
6. Verify by recursive rejection, children in draw order. Greedy runs take the likeliest token of R instead of a draw,
   and since it is known, the place of largest v * max R: the tree is then the best of its size.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass, field

from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, WithDraft
from segue.models.draft import Draft, prefix
from segue.models.run import Request, Run
from segue.ops.accept import without


@dataclass(frozen=True)
class Dyspec(WithDraft):
    """A tree whose shape follows the draft's own confidence: deep where it is sure, wide where it is not."""

    card = Card(
        paper=Paper(
            id="2410.11744",
            title="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
            year=2024,
        ),
        claim=Claim(value=9.1, unit="throughput ratio", baseline="greedy", setting="Llama2-70B, offloaded"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "tree attention"),
        departs="nodes that wait for a row share a draft forward",
        check="spec",
    )

    nodes: int = 16  # m: nodes of the tree
    layerwise: bool = False  # fill all places of a value level by level, one draft forward each
    theta: float = 0.0  # value from which on a place is filled (layer-wise); 0: one in `nodes`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes} is not allowed: at least 1")
        if not 0 <= self.theta <= 1:
            raise ValueError(f"theta={self.theta} is not allowed: from 0 (one in `nodes`) to 1")

    def propose(self, run: Run, state: Draft, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        growing = Growing(run, DraftTree.root(run.ids[-1]))
        growing.tree.replacement = False
        most = min(self.nodes, budget.nodes)
        depth = min(budget.depth, state.room(run))
        if most < 1 or depth < 1:
            return growing.tree
        if self.layerwise:
            return (yield from self._levels(state, growing, most, depth))
        return (yield from self._heap(state, growing, most, depth))

    def _heap(self, state: Draft, growing: Growing, most: int, depth: int) -> Generator[Request, Scores, DraftTree]:
        tree = growing.tree
        heap = [(-1.0, 0, 0, 1.0, not growing.run.target.greedy)]  # (-priority, order, node, value, final)
        order = 0
        while heap and len(tree) <= most:
            _, _, node, value, final = heapq.heappop(heap)
            if node not in growing.left:
                growing.learn((yield from state.rows(growing.run.ids, tree)))
            if not final:
                # The likeliest token is known, and the place is worth no more than the chance of that one.
                order += 1
                rest = growing.left[node]
                heapq.heappush(heap, (-value * float(rest.max() / rest.sum()), order, node, value, True))
                continue
            child, below, beside = growing.next(node, value)
            for more, place in ((below, child), (beside, node)):
                order += 1
                if more > 0 and tree.depths[place] < depth:
                    heapq.heappush(heap, (-more, order, place, more, not growing.run.target.greedy))
        return tree

    def _levels(self, state: Draft, growing: Growing, most: int, depth: int) -> Generator[Request, Scores, DraftTree]:
        tree = growing.tree
        theta = self.theta or 1 / self.nodes
        level = [(0, 1.0)]
        for _ in range(depth):
            growing.learn((yield from state.rows(growing.run.ids, tree)))
            grown = []
            for node, value in level:
                while value >= theta and len(tree) <= most:
                    child, below, value = growing.next(node, value)
                    grown.append((child, below))
            # What hangs below a value is worth less: only these can have children.
            level = [(child, value) for child, value in grown if value >= theta]
            if not level or len(tree) > most:
                break
        return tree


@dataclass(slots=True)
class Growing:
    """A tree that grows by single children, and the residual rows of its nodes."""

    run: Run
    tree: DraftTree
    left: dict[int, Tensor] = field(default_factory=dict)  # node -> R (V,)
    scored: int = 0

    def learn(self, rows: list[Tensor]) -> None:
        """Take the draft's rows of the nodes that had none."""
        for node, row in enumerate(rows, start=self.scored):
            self.tree.rows[node] = row
            text = prefix(self.run, self.tree, node)
            if self.run.target.greedy:
                self.left[node] = self.run.target.processed(row, text).softmax(-1)
            else:
                self.left[node] = self.tree.q[node] = self.run.target.p(row, text)
        self.scored += len(rows)

    def next(self, node: int, value: float) -> tuple[int, float, float]:
        """Add the next child of a node at a place of this value: the child, and the values below and beside it."""
        rest = self.left[node]
        greedy = self.run.target.greedy
        token = int(rest.argmax()) if greedy else self.run.chance.index(rest)
        share = float(rest[token] / rest.sum())
        above = self.tree.score[node] if greedy else 1.0
        score = value * share / max(self._value(node), 1e-30) if greedy else above
        child = self.tree.add(node, token, sampled=not greedy, score=score, source="dyspec")
        done = share >= 1 - 1e-9
        self.left[node] = rest if done else without(rest, token)
        return child, value * share, 0.0 if done else value * (1 - share)

    def _value(self, node: int) -> float:
        """The product of the scores down to a node."""
        value = 1.0
        for step in self.tree.path(node):
            value *= self.tree.score[step]
        return value
