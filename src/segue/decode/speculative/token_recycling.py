"""Token Recycling: keep the candidates that decoding throws away, and grow the next draft tree from them.

M[t] holds the k likeliest successors last predicted after token t. Per round:
1. Fill a fixed tree template level by level from M, starting at the last token: the child of rank r of a node with
   token t is M[t][r].
2. Score all nodes in one forward; keep the longest path that the target agrees with.
3. Write back M[t] <- the top k of the row of every node, accepted or not (accepted ones last, so they win).
4. The next round starts at the token after the path. M outlives the request.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.run import Run

UNKNOWN = -1
# Chance that the successor of each rank is the one, falling as in a Zipf law: it only shapes the template.
RANKS = (0.50, 0.15, 0.08, 0.05, 0.04, 0.03, 0.025, 0.02)


@dataclass(frozen=True)
class TokenRecycling(Speculative):
    """Grows a tree from an adjacency matrix of recent predictions: no draft model, 8 integers per vocabulary entry."""

    card = Card(
        paper=Paper(
            id="2408.08696",
            title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
            year=2024,
        ),
        claim=Claim(value=2.0, unit="speed-up", baseline="greedy", setting="7B to 33B, Spec-Bench, GPU"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "tree attention"),
        departs="the template is grown from assumed rank probabilities instead of the authors' table; successors never "
        "seen are left out instead of being token 0; sampled mode by delta proposals",
        check="spec",
    )

    width: int = 8  # k: successors kept per token
    nodes: int = 80  # size of the tree template
    depth: int = 6  # its depth
    keep: bool = True  # the matrix outlives the request (reset with reset_stores)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("width", len(RANKS)), ("nodes", 512), ("depth", 64)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: from 1 to {most}")

    @property
    def needs(self) -> Want:  # type: ignore[override]
        return Want(topk=self.width)

    def start(self, run: Run) -> Tensor:
        """M (V, k): successors by rank, UNKNOWN where none was seen."""
        shape = (run.lm.vocab_size, self.width)
        if not self.keep:
            return torch.full(shape, UNKNOWN, dtype=torch.int32)
        key = f"token_recycling:{self.width}"
        if key not in run.lm.stores:
            run.lm.stores[key] = torch.full(shape, UNKNOWN, dtype=torch.int32)
        return cast(Tensor, run.lm.stores[key])

    def propose(self, run: Run, state: Tensor, budget: Budget) -> DraftTree:
        tree = DraftTree.root(run.ids[-1])
        placed = {0: 0}  # template node -> tree node
        successors: dict[int, list[int]] = {}
        for number, (parent, rank) in enumerate(template(self.width, self.nodes, self.depth), start=1):
            if len(tree) > budget.nodes:
                break
            if parent not in placed or tree.depths[placed[parent]] >= budget.depth:
                continue
            token = tree.tokens[placed[parent]]
            if token not in successors:
                successors[token] = state[token].tolist()
            if successors[token][rank] != UNKNOWN:
                child = tree.add(placed[parent], successors[token][rank], score=RANKS[rank], source="token_recycling")
                placed[number] = child
        return tree

    def observe(self, run: Run, state: Tensor, outcome: Outcome) -> None:
        assert outcome.scores.topk is not None
        tokens = outcome.tree.tokens
        row = {tokens[node]: node for node in [*range(len(tokens)), *outcome.path]}
        known = outcome.scores.topk[list(row.values())].to("cpu", torch.int32)
        state[list(row.keys()), : known.shape[1]] = known


@lru_cache(maxsize=32)
def template(width: int, nodes: int, depth: int) -> tuple[tuple[int, int], ...]:
    """(parent, rank) of the template's nodes 1, 2, ...: those most likely to be reached, parents first."""
    chosen: list[tuple[int, int]] = []
    heap = [(-RANKS[0], 0, 0, 1)]  # (-chance, parent, rank, depth)
    while heap and len(chosen) < nodes:
        chance, parent, rank, level = heapq.heappop(heap)
        chosen.append((parent, rank))
        node = len(chosen)
        if rank + 1 < width:
            heapq.heappush(heap, (chance / RANKS[rank] * RANKS[rank + 1], parent, rank + 1, level))
        if level < depth:
            heapq.heappush(heap, (chance * RANKS[0], node, 0, level + 1))
    return tuple(chosen)
