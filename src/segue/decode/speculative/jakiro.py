"""Jakiro: one layer of two experts drafts the model's next states, and the last two depths of its tree in one pass.

1. x_t, from the state behind token t and token t+1, enters a decoder layer that attends to all x up to t; the rows of
   the verified tokens are kept, each computed once.
2. The layer's left output, the weighted sum of its experts, is the guess of the model's next state; the model's own
   head makes logits of it, for the token behind the pending one.
3. Each of the `width` best nodes of a depth, with its guessed state, enters the layer behind its own branch and has its
   `width` likeliest tokens as children: the product of the probabilities down to a node decides (as in EAGLE-2).
4. The pass before the last depth also gives the right output, the experts' difference: a guess of the state after the
   next one, which fills the last depth. So a tree of depth d takes d - 1 passes.
5. The `nodes` best of all are scored by the target in one forward; the states along the accepted path are kept. Where
   states are missing, since others drafted or read the prompt, the text is read once more for them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget
from segue.decode.speculative.heads.base import Attentive, Growth
from segue.models.heads.context import Context
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.layer import Rows, picked
from segue.models.run import Request, Run


@dataclass(frozen=True)
class Jakiro(Attentive):
    """Guesses in the model's own states: one head serves all depths, where chimera has one for each."""

    card = Card(
        paper=Paper(
            id="2502.06282", title="Jakiro: Boosting Speculative Decoding with Decoupled Multi-Head via MoE", year=2025
        ),
        claim=Claim(
            value=None, unit="none", baseline="EAGLE-2", setting="Vicuna, LLaMA-2 and LLaMA-3, greedy and sampled"
        ),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "trained heads", "tree attention"),
        departs="the layer's input is normalised; the noise of training is measured by the states, not by the length",
        check="spec",
    )
    network = JakiroNetwork

    depth: int = 5  # of the tree
    width: int = 8  # nodes of a depth that have children, and children of each
    nodes: int = 59  # nodes that are verified

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "width", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def propose(self, run: Run, state: Context, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        depth, nodes = min(self.depth, budget.depth, budget.nodes), min(self.nodes, budget.nodes)
        if depth < 1:
            return DraftTree.root(run.ids[-1])
        yield from self.catch_up(run, state)
        return self._grow(run, state, depth).tree(nodes, self.name)

    @torch.inference_mode()
    def _grow(self, run: Run, state: Context, depth: int) -> Growth:
        network: JakiroNetwork = state.network
        context, device = state.rows(run.ids), state.last.device
        growth = Growth(run.ids[-1], device)
        entering = network.entering(run.lm, state.last, growth.tokens)
        left, right = network(entering, range(state.length - 1, state.length), context)
        chain: Rows | None = None
        nodes = torch.zeros(1, dtype=torch.long, device=device)
        for level in range(1, depth + 1):
            children, places = growth.expand(nodes, run.lm.head(left), self.width, self.width**2)
            if level == depth:
                break
            nodes, places = children[: self.width], places[: self.width]
            if level == depth - 1 and right is not None:
                growth.expand(nodes, run.lm.head(right)[places], self.width, self.width**2)
                break
            position = range(state.length - 1 + level, state.length + level)
            before = None if chain is None else picked(chain, places)
            left, right, chain = network.branch(run.lm, left[places], growth.tokens[nodes], position, context, before)
        return growth
