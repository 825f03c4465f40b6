"""Drafters that are networks trained beside the target: what they read of it, and where their network comes from."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Outcome, Speculative
from segue.models.heads import DraftNetwork, embedded, trained
from segue.models.heads.context import Context
from segue.models.lm import LM
from segue.models.run import Prefill, Request, Run
from segue.models.sequence import Mark

__all__ = ["Attentive", "Beside", "Growth", "Trained"]


@dataclass(frozen=True, kw_only=True)
class Trained(Speculative):
    """Base of drafters that are networks trained beside the target, which draft from its hidden states."""

    network: ClassVar[type[DraftNetwork]]

    free: ClassVar[bool] = False

    heads: str | DraftNetwork | None = None  # folder of a drafter or of published heads; none: the embedded one

    def lacks(self, lm: LM) -> str:
        none = self.heads is None and embedded(lm, self.network.kind) is None
        return super().lacks(lm) or (f"there is no drafter of kind {self.network.kind} for this model" if none else "")

    needs = Want(hidden=(-1,))  # what it is before the network is known; a network may read another layer

    def reading(self, state: Any) -> Want:
        return Want(hidden=state.network.reads)

    def wanted(self, state: Any) -> Want:
        return self.reading(state)

    def price(self, run: Run, tokens: int) -> float:
        return trained(run.lm, self.network, self.heads).seconds

    def start(self, run: Run) -> Any:
        return Beside(trained(run.lm, self.network, self.heads))

    def read(self, run: Run, state: Any, scores: Scores) -> None:
        state.see(scores, -1, len(run.ids) + 1)

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        state.see(outcome.scores, outcome.path[-1], len(run.ids))


@dataclass(slots=True)
class Beside:
    """What a run keeps of its trained drafter: the network, and the state behind the last token that was read."""

    network: Any
    _hidden: Tensor | None = None  # (D,)
    _length: int = 0  # of the run's ids when it is up to date

    def see(self, scores: Scores, node: int, length: int) -> None:
        """A forward of the target, whose last token that stays is that node's; the run then has so many ids."""
        if -1 in scores.hidden:  # not where others read the prompt for this run, or where a round was none of ours
            self._hidden, self._length = scores.hidden[-1][node], length

    def hidden(self, run: Run) -> Tensor | None:
        """(D,) behind the token before the pending one; None where that was not seen."""
        return self._hidden if self._length == len(run.ids) else None


@dataclass(frozen=True, kw_only=True)
class Attentive(Trained):
    """Base of those whose network attends to the states behind all that the target has read."""

    def start(self, run: Run) -> Any:
        return Context(trained(run.lm, self.network, self.heads), run.lm)

    def read(self, run: Run, state: Any, scores: Scores) -> None:
        (layer,) = state.network.reads
        if layer in scores.hidden:
            state.add(scores.hidden[layer], len(run.ids))

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        (layer,) = state.network.reads
        if layer in outcome.scores.hidden:
            state.add(outcome.scores.hidden[layer][outcome.path], len(run.sequence))

    def rewind(self, run: Run, state: Any) -> None:
        state.cut(len(run.sequence))

    def catch_up(self, run: Run, state: Context) -> Generator[Request, Scores, None]:
        """Read once more what was read without states: where others read the prompt for this run, or where rounds were
        none of ours."""
        length = len(run.ids) - 1
        if state.length < length:
            again = run.sequence.fork()
            again.drafts = True
            again.rollback(Mark(state.length, None))
            try:
                want = replace(self.reading(state), logits="none")
                scores = yield Prefill(again, run.ids[state.length : length], want)
            finally:
                again.release()
            (layer,) = state.network.reads
            state.add(scores.hidden[layer], length)


class Growth:
    """A tree of guesses in the making: of every node the product of the drafter's probabilities down to it."""

    def __init__(self, root: int, device: torch.device) -> None:
        self.tokens = torch.tensor([root], device=device)
        self._parents = torch.tensor([-1], device=device)
        self._totals = torch.zeros(1, device=device)  # log-probabilities
        self._shares = torch.zeros(1, device=device)

    def expand(self, nodes: Tensor, logits: Tensor, width: int, keep: int) -> tuple[Tensor, Tensor]:
        """Of the `width` likeliest tokens after each of the nodes (N,) by logits (N, V) the `keep` best of all become
        nodes: their numbers (M,), best first, and the place among `nodes` of each one's parent (M,)."""
        best = logits.float().log_softmax(-1).topk(min(width, logits.shape[-1]))
        totals = (self._totals[nodes][:, None] + best.values).flatten()
        totals, kept = totals.topk(min(keep, len(totals)))
        places = kept // best.values.shape[-1]
        numbers = torch.arange(len(kept), device=kept.device) + len(self.tokens)
        self.tokens = torch.cat([self.tokens, best.indices.flatten()[kept]])
        self._parents = torch.cat([self._parents, nodes[places]])
        self._totals = torch.cat([self._totals, totals])
        self._shares = torch.cat([self._shares, best.values.flatten()[kept]])
        return numbers, places

    def tree(self, most: int, source: str) -> DraftTree:
        """The best nodes, at most so many besides the root."""
        # Of equal ones the first come first, so that no child goes before its parent.
        order = self._totals[1:].sort(descending=True, stable=True).indices[:most].sort().values + 1
        tree = DraftTree.root(int(self.tokens[0]))
        placed = {0: 0}
        columns = (order, self._parents[order], self.tokens[order], self._shares[order].exp())
        for node, parent, token, share in zip(*(column.tolist() for column in columns), strict=True):
            placed[node] = tree.add(placed[parent], token, score=share, source=source)
        return tree
