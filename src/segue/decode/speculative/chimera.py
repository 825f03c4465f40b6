"""Chimera: a light drafter that reads all tokens, the verified ones by the model's states and the newest by trigrams.

1. The model's last states behind all verified tokens are kept; one transformer layer has a row for each, computed once.
2. Draft: the trigram vector of the pending token and the two before it enters the layer behind them; draft head 1 turns
   its output, beside the state of the last verified token, into logits for the token behind the pending one.
3. The outputs stand for the states that the model would have: the next trigrams, of the drafted tokens, attend to them
   as well, and draft head i guesses the i-th token.
4. Depth by depth the likeliest nodes stay, `widths` of them; the tree is scored by the target in one forward.
5. The states of that forward along the accepted path join those that are kept. Where states are missing, since others
   drafted or read the prompt, the text is read once more for them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, levels
from segue.decode.speculative.heads.base import Attentive, Growth, likeliest
from segue.models.heads.chimera import ChimeraNetwork, LeanChimera
from segue.models.heads.context import Context
from segue.models.heads.lean import beside
from segue.models.run import Request, Run
from segue.models.threads import on_threads


@dataclass(frozen=True)
class Chimera(Attentive):
    """Guesses from the whole context at the price of one layer; blockwise_parallel's see the last state only."""

    card = Card(
        paper=Paper(
            id="2402.15758",
            title="Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all "
            "Tokens",
            year=2024,
        ),
        claim=Claim(value=2.7, unit="speed-up", baseline="greedy", setting="average, Vicuna and LLaMA-2"),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "trained heads", "tree attention"),
        departs="draft heads are low-rank additions to the model's own; the likeliest nodes of a depth are drafted, "
        "not a fixed choice; states are not distilled",
        check="spec",
    )
    network = ChimeraNetwork

    widths: str = "4,8,8,3,2"  # nodes of the tree at each depth, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        levels("widths", self.widths, "4,8,8,3,2")

    def propose(self, run: Run, state: Context, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        widths = levels("widths", self.widths, "4,8,8,3,2")[: min(budget.depth, budget.nodes)]
        if not widths:
            return DraftTree.root(run.ids[-1])
        yield from self.catch_up(run, state)
        with torch.inference_mode(), on_threads(run.lm.threads_for(1)):
            return self._tree(run, state, widths)

    def _tree(self, run: Run, state: Context, widths: tuple[int, ...]) -> DraftTree:
        network: LeanChimera = state.lean
        count, length = network.shape.grams, state.length
        last = state.last.to(network.dtype)
        state.read(run.ids)
        growth, nodes = Growth(run.ids[-1]), [0]
        grams = [[*[run.ids[0]] * (count - len(run.ids)), *run.ids[-count:]]]
        stop, bias, above = length, None, torch.zeros(1, dtype=torch.long, device=last.device)
        first = length - 1 if network.shape.near else 0
        for stage, width in enumerate(widths[: network.shape.heads]):
            position = range(length + stage, length + stage + 1)
            vectors = network.newest(run.lm, torch.tensor(grams, device=last.device))
            queries, keys, values = network.attention.project(vectors, position)
            state.put(stop, keys, values)
            bias = beside(bias, above, last.dtype)
            rows = state.seen(stop + len(nodes), first)
            features, states = network.guesses(stage, vectors, queries, rows, bias, last)
            _, keys, values = network.attention.project(states, position)
            state.put(stop, keys, values)  # later guesses see the state, not the trigram
            stop += len(nodes)
            nodes, places = growth.expand(nodes, likeliest(network.logits(run.lm, features), width), width)
            grams = [[*grams[place][1:], growth.tokens[node]] for node, place in zip(nodes, places, strict=True)]
            above = torch.tensor(places, device=last.device)
        return growth.tree(sum(widths), self.name)
