"""Blockwise parallel decoding: further output heads guess the tokens behind the next one, and the model checks them.

1. Predict: from the state h behind the last token that was read, head i guesses the token i places behind the one that
   the model itself has just chosen (pending).
2. Verify: the pending token and the guesses are scored in one forward.
3. Accept: the longest prefix of the guesses that the model agrees with. The states of the same forward, at the last
   accepted token, give the next guesses, so a round costs one forward (section 3).
4. Relaxed acceptance (section 5; lossy): a guess is also accepted where it is among the model's `top` likeliest tokens,
   where its number is within `distance` of the likeliest token's (ordered vocabularies, such as pixels), and the first
   `least` tokens of a block are accepted in any case.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, Proposal
from segue.decode.speculative.heads.base import Beside, Trained
from segue.models.draft import chain, given, prefix
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.run import Request, Run


@dataclass(frozen=True)
class BlockwiseParallel(Trained):
    """Several heads on one state: the cheapest of the trained drafters, whose guesses do not see each other."""

    card = Card(
        paper=Paper(id="1811.03115", title="Blockwise Parallel Decoding for Deep Autoregressive Models", year=2018),
        claim=Claim(
            value=4.0,
            unit="speed-up",
            baseline="greedy",
            setting="translation and super-resolution, fine-tuned model, relaxed acceptance",
        ),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "trained heads"),
        departs="all heads are trained in every batch, not one drawn for it",
        check="spec",
    )
    network = BlockwiseHeads

    top: int = 1  # accept a guess among so many likeliest tokens (lossy above 1)
    distance: int = 0  # accept a guess whose number differs so much from the likeliest token's (lossy above 0)
    least: int = 1  # tokens of a block that are accepted in any case (lossy above 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("top", 1), ("distance", 0), ("least", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {low} ({low} is exact)")

    @property
    def only_proposes(self) -> bool:
        return (self.top, self.distance, self.least) == (1, 0, 1)

    def propose(self, run: Run, state: Beside, budget: Budget) -> Proposal:
        heads = state.network
        steps = min(heads.shape.heads, budget.depth, budget.nodes)
        hidden = state.hidden(run)
        if hidden is None or steps < 1:
            return DraftTree.root(run.ids[-1])
        with torch.inference_mode():
            rows = heads.guesses(run.lm, hidden, steps)
        if run.target.argmax:
            tree = DraftTree.chain([run.ids[-1], *rows.argmax(-1).tolist()], self.name)
            tree.rows.update(enumerate(rows))
            return tree
        return chain(run, steps, given(run, list(rows)), self.name)

    def decide(
        self, run: Run, state: Beside, tree: DraftTree, scores: Scores
    ) -> Generator[Request, Scores, tuple[list[int], int]]:
        if self.only_proposes:
            return (yield from super().decide(run, state, tree, scores))
        path = [0]
        for node in range(1, len(tree)):
            p = run.target.p(scores.row(path[-1]), prefix(run, tree, path[-1]))
            token = tree.tokens[node]
            if not (len(path) < self.least or self._near(token, p)):
                drawn = int(p.argmax()) if run.target.greedy else run.chance.index(p)
                if drawn != token:
                    return path, drawn
            path.append(node)
        p = run.target.p(scores.row(path[-1]), prefix(run, tree, path[-1]))
        return path, int(p.argmax()) if run.target.greedy else run.chance.index(p)

    def _near(self, token: int, p: Tensor) -> bool:
        """Whether a guess is good enough though it may not be the model's choice."""
        better = int((p > p[token]).sum())
        return better < self.top or (self.distance > 0 and abs(token - int(p.argmax())) <= self.distance)
