"""Drafters that are networks trained beside the target: what they read of it, and where their network comes from."""

from __future__ import annotations

from collections.abc import Callable, Generator
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
    joins: ClassVar[bool] = True

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
        return trained(run.lm, self.network, self.heads).seconds(tokens)

    def pricing(self, run: Run, state: Any) -> Callable[[int], float]:
        seconds: Callable[[int], float] = state.network.seconds
        return seconds

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


Best = list[tuple[float, int]]  # tokens with their probabilities, likeliest first


def likeliest(logits: Tensor, width: int) -> list[Best]:
    """Of every row of logits (N, V) the `width` likeliest tokens."""
    best = logits.softmax(-1, dtype=torch.float32).topk(min(width, logits.shape[-1]))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [list(zip(shares, tokens, strict=True)) for shares, tokens in pairs]


class Growth:
    """A tree of guesses in the making: of every node the product of the drafter's probabilities down to it."""

    def __init__(self, root: int) -> None:
        self.tokens = [root]
        self._parents = [-1]
        self._totals = [1.0]
        self._shares = [1.0]

    def expand(self, nodes: list[int], best: list[Best], keep: int) -> tuple[list[int], list[int]]:
        """Of the likeliest tokens after each of the nodes the `keep` best of all become nodes: their numbers, best
        first, and the place among `nodes` of each one's parent."""
        found = [
            (self._totals[node] * share, place, token, share)
            for place, (node, row) in enumerate(zip(nodes, best, strict=True))
            for share, token in row
        ]
        found.sort(key=_total, reverse=True)
        del found[keep:]
        first, places = len(self.tokens), [place for _, place, _, _ in found]
        self.tokens += [token for _, _, token, _ in found]
        self._parents += [nodes[place] for place in places]
        self._totals += [total for total, _, _, _ in found]
        self._shares += [share for _, _, _, share in found]
        return list(range(first, len(self.tokens))), places

    def mass(self, nodes: list[int]) -> float:
        """The drafter's probability that the text goes through one of these nodes of one depth."""
        return sum(self._totals[node] for node in nodes)

    def tree(self, most: int, source: str) -> DraftTree:
        """The best nodes, at most so many besides the root."""
        # Of equal ones the first come first, so that no child goes before its parent.
        order = sorted(range(1, len(self.tokens)), key=self._totals.__getitem__, reverse=True)[:most]
        tree = DraftTree.root(self.tokens[0])
        placed = {0: 0}
        for node in sorted(order):
            parent = placed[self._parents[node]]
            placed[node] = tree.add(parent, self.tokens[node], score=self._shares[node], source=source)
        return tree


def _total(found: tuple[float, int, int, float]) -> float:
    return found[0]
