"""MLP speculator: one small stage for every guessed token, which sees the model's state and the token chosen before.

1. From the state h behind the last token that was read and the pending token, stage 1 gives its own state s_1 and
   logits for the token behind the pending one; stage i goes on from s_{i-1} and the token chosen at stage i-1.
2. Greedy: every stage keeps the `expand` likeliest tokens of each path; of all paths the `candidates` best by their
   summed log-probabilities are drafted, as one tree. Sampling: one path, drawn from the stages' own distributions.
3. The target scores the tree in one forward; the longest path that it agrees with stays.
4. The state of that forward at the last accepted token is the next h.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, Proposal, levels
from segue.decode.speculative.heads.base import Beside, Trained
from segue.models.draft import chain
from segue.models.heads.speculator import Speculator
from segue.models.run import Request, Run


@dataclass(frozen=True)
class MLPSpeculator(Trained):
    """Guesses that follow from each other, for the price of one thin layer each."""

    card = Card(
        paper=Paper(
            id="2404.19124",
            title="Accelerating Production LLMs with Combined Token/Embedding Speculators",
            year=2024,
        ),
        claim=Claim(value=2.0, unit="speed-up", baseline="greedy", setting="2 to 3, optimised serving, 7B to 34B"),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "trained heads", "tree attention"),
        departs="candidates are verified as one tree; sampled requests draft one drawn path",
        check="spec",
    )
    network = Speculator

    expand: str = "5,4,3"  # tokens kept at each stage, per path; the last number serves for further stages
    candidates: int = 5  # paths that are verified

    def __post_init__(self) -> None:
        super().__post_init__()
        levels("expand", self.expand, "5,4,3")
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} is not allowed: at least 1")

    def propose(self, run: Run, state: Beside, budget: Budget) -> Proposal:
        network: Speculator = state.network
        steps = min(network.shape.stages, budget.depth, budget.nodes)
        hidden = state.hidden(run)
        if hidden is None or steps < 1:
            return DraftTree.root(run.ids[-1])
        start = network.begin(hidden[None])
        if run.target.argmax:
            return self._tree(run, network, start, steps)
        return self._path(run, network, start, steps)

    def _path(self, run: Run, network: Speculator, start: Tensor, steps: int) -> Proposal:
        length, states = len(run.ids), start

        def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
            nonlocal states
            yield from ()
            with torch.inference_mode():
                states, logits = network(len(ids) - length, states, torch.tensor(ids[-1:], device=states.device))
            row: Tensor = logits[0]
            return row

        return chain(run, steps, read, self.name)

    @torch.inference_mode()
    def _tree(self, run: Run, network: Speculator, states: Tensor, steps: int) -> DraftTree:
        """The best paths by beam search with a beam as wide as what every stage keeps of each path."""
        kept = levels("expand", self.expand, "5,4,3")
        tokens = torch.tensor([run.ids[-1]], device=states.device)
        logp = torch.zeros(1, device=states.device)
        paths = torch.empty(1, 0, dtype=torch.long, device=states.device)
        shares = torch.empty(1, 0, device=states.device)
        for stage in range(steps):
            states, logits = network(stage, states, tokens)
            width = min(kept[min(stage, len(kept) - 1)], logits.shape[-1])
            best = logits.float().log_softmax(-1).topk(width)
            logp = (logp[:, None] + best.values).flatten()
            tokens = best.indices.flatten()
            paths = torch.cat([paths.repeat_interleave(width, 0), tokens[:, None]], 1)
            shares = torch.cat([shares.repeat_interleave(width, 0), best.values.exp().flatten()[:, None]], 1)
            states = states.repeat_interleave(width, 0)
        chosen = logp.topk(min(self.candidates, len(logp))).indices
        tree = DraftTree.root(run.ids[-1])
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for path, share in zip(paths[chosen].tolist(), shares[chosen].tolist(), strict=True):
            for end, value in enumerate(share, 1):
                key = tuple(path[:end])
                if key not in nodes:
                    nodes[key] = tree.add(nodes[key[:-1]], key[-1], score=value, source=self.name)
        return tree
