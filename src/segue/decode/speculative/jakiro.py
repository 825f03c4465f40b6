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
from segue.decode.speculative.heads.base import Attentive, Growth, likeliest
from segue.models.heads.context import Context
from segue.models.heads.jakiro import JakiroNetwork, LeanJakiro
from segue.models.heads.lean import beside
from segue.models.run import Request, Run
from segue.models.threads import on_threads


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
        width = min(self.width, (nodes + 1) // 2)  # more branches would not find room in the tree
        with torch.inference_mode(), on_threads(run.lm.threads_for(1)):
            return self._grow(run, state, depth, width, budget.least).tree(nodes, self.name)

    def _grow(self, run: Run, state: Context, depth: int, width: int, least: float) -> Growth:
        network: LeanJakiro = state.lean
        growth, passes = Growth(run.ids[-1]), max(depth - network.foresees, 1)
        entering, queries = state.read(run.ids)
        nodes, stop, bias, before = [0], state.length, None, 1.0
        for level in range(passes):
            mass = growth.mass(nodes)
            # The next pass would start from the nodes of this one: as much of the mass is lost as on the last depth.
            last = level == passes - 1 or (level > 0 and mass * mass / before < least)
            both = network.foresees and last and depth > 1
            guessed = network.guesses(entering, queries, state.seen(stop), bias, both)
            best = likeliest(network.logits(run.lm, guessed.flatten(0, 1)), width)
            children, places = growth.expand(nodes, best[:: guessed.shape[1]], width**2)
            nodes, parents = children[:width], places[:width]
            if both:
                growth.expand(nodes, [best[2 * place + 1] for place in parents], width**2)
            if last:
                break
            above = torch.tensor(parents, device=guessed.device)
            tokens = torch.tensor([growth.tokens[node] for node in nodes], device=guessed.device)
            position = state.length + level
            entering = network.entering(run.lm, guessed[:, 0].index_select(0, above), tokens)
            queries, keys, values = network.attention.project(entering, range(position, position + 1))
            state.put(stop, keys, values)
            stop += len(nodes)
            bias, before = beside(bias, above, guessed.dtype), mass
        return growth
