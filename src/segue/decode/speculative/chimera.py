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
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, levels
from segue.decode.speculative.heads.base import Attentive, Growth
from segue.models.heads.chimera import ChimeraNetwork
from segue.models.heads.context import Context
from segue.models.heads.layer import Rows, picked
from segue.models.run import Request, Run


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
        return self._tree(run, state, widths)

    @torch.inference_mode()
    def _tree(self, run: Run, state: Context, widths: tuple[int, ...]) -> DraftTree:
        network: ChimeraNetwork = state.network
        count, device = network.shape.grams, state.last.device
        keys, values = state.rows(run.ids)
        context: Rows = (keys[:, -1:], values[:, -1:]) if network.shape.near else (keys, values)
        growth = Growth(run.ids[-1], device)
        nodes = torch.zeros(1, dtype=torch.long, device=device)
        newest = [*[run.ids[0]] * (count - len(run.ids)), *run.ids[-count:]]
        grams: Tensor = torch.tensor([newest], device=device)
        chain: Rows | None = None
        for stage, width in enumerate(widths[: network.shape.heads]):
            position = range(state.length + stage, state.length + stage + 1)
            features, chain = network(stage, network.newest(run.lm, grams), position, state.last, context, chain)
            nodes, places = growth.expand(nodes, run.lm.head(features), width, width)
            grams = torch.cat([grams[places, 1:], growth.tokens[nodes][:, None]], -1)
            chain = picked(chain, places)
        return growth.tree(sum(widths), self.name)
