"""Refined blockwise drafts: the heads' likeliest tokens are put together by a small model before they are verified.

1. The heads of blockwise parallel decoding (the same trained heads) give `top` tokens for every place: a lattice.
2. by="ngram" (global): the `paths` best paths under the heads' log-probabilities plus `weight` times those of a
   trigram model with back-off, which is counted on the text so far and on a table where one is given. by="paths" leaves
   the model out. by="neural" (local): place by place the best token under the heads plus `weight` times a small
   language model that reads along.
3. All paths are verified in one forward, as a tree; the longest that the model agrees with stays.
4. The states of that forward at the last accepted token give the next lattice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, Outcome, Proposal
from segue.decode.speculative.heads.base import Beside, Trained, likeliest
from segue.decode.speculative.store.base import StoreError
from segue.decode.speculative.store.trigram import open_table
from segue.models.companion import companion
from segue.models.draft import Draft
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.lm import LM
from segue.models.run import Request, Run
from segue.ops.sausage import best_paths

WAYS = ("ngram", "paths", "neural")
TINY = 1e-30  # of a share that is nothing in its precision
BACK_OFF = 0.4  # what a shorter context counts (Brants et al. 2007)


@dataclass(frozen=True)
class BlockwiseDrafts(Trained):
    """Block drafts without the repetitions of heads that do not see each other."""

    card = Card(
        paper=Paper(
            id="2404.09221",
            title="Towards Fast Inference: Exploring and Improving Blockwise Parallel Drafts",
            year=2024,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="blockwise parallel drafts",
            setting="5 to 21% more tokens per forward, by task",
        ),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "trained heads", "tree attention"),
        departs="the n-gram model is a back-off of relative frequencies, counted on the text so far as well",
        check="spec",
    )
    network = BlockwiseHeads

    by: str = "ngram"  # who puts the drafts together: ngram, paths (the heads alone), neural
    top: int = 4  # tokens of every head
    paths: int = 4  # verified at once (neural: 1)
    weight: float = 0.3  # of the small model's log-probabilities
    table: str | None = None  # trigrams of a corpus (segue index trigrams), for ngram
    draft: str | LM | None = None  # small model, for neural; none: the embedded draft of the embedded model

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in WAYS:
            raise ValueError(f"by={self.by!r} is not allowed: {', '.join(WAYS)}")
        for name in ("top", "paths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if not self.weight >= 0:
            raise ValueError(f"weight={self.weight} is not allowed: at least 0")

    def price(self, run: Run, tokens: int) -> float:
        own = super().price(run, tokens)
        return own + (tokens * companion(run.lm, self.draft).cost.step(1) if self.by == "neural" else 0.0)

    def start(self, run: Run) -> Refining:
        state = Refining(super().start(run).network)
        if self.by == "neural":
            state.small = Draft(companion(run.lm, self.draft).reading(run.source), run.lm.vocab_size)
        elif self.by == "ngram" and self.table is not None:
            state.corpus = open_table(self.table)
            if reason := state.corpus.lacks(run.lm):
                raise StoreError(reason)
        return state

    def propose(self, run: Run, state: Refining, budget: Budget) -> Proposal:
        hidden = state.hidden(run)
        steps = min(state.network.shape.heads, budget.depth, budget.nodes)
        if hidden is None or steps < 1:
            return DraftTree.root(run.ids[-1])
        with torch.inference_mode():
            best = likeliest(state.network.guesses(run.lm, hidden, steps), self.top)
        columns = [[(token, math.log(max(share, TINY))) for share, token in row] for row in best]
        if state.small is not None:
            return self._local(run, state.small, columns)
        step = self._step(run, state)
        tree = DraftTree.root(run.ids[-1])
        chance = dict[tuple[int, int], float]()
        for place, column in enumerate(columns):
            chance |= {(place, token): math.exp(value) for token, value in column}
        children: dict[tuple[int, int], int] = {}
        for _, path in best_paths(columns, step, self.paths):
            node = 0
            for place, token in enumerate(path):
                if (node, token) not in children:
                    children[node, token] = tree.add(node, token, score=chance[place, token], source=self.name)
                node = children[node, token]
        return tree

    def _step(self, run: Run, state: Refining) -> Callable[[tuple[int, ...], int], float]:
        """What a token adds to a path's score."""
        if self.by == "paths":
            return lambda path, token: 0.0
        state.count(run)
        before, size = tuple(run.seen[-2:]), run.lm.vocab_size
        return lambda path, token: self.weight * state.logp((*before, *path)[-2:], token, size)

    def _local(
        self, run: Run, small: Draft, columns: list[list[tuple[int, float]]]
    ) -> Generator[Request, Scores, DraftTree]:
        tree = DraftTree.root(run.ids[-1])
        for place, column in enumerate(columns[: small.room(run)]):
            row = (yield from small.read(run.ids + tree.tokens[1:])).float().log_softmax(-1)
            _, token, share = max((value + self.weight * float(row[token]), -token, value) for token, value in column)
            tree.add(place, -token, score=math.exp(share), source=self.name)
        return tree

    def observe(self, run: Run, state: Refining, outcome: Outcome) -> None:
        super().observe(run, state, outcome)
        if state.small is not None:
            state.small.settle(run.sequence, [outcome.tree.tokens[node] for node in outcome.path])


@dataclass(slots=True)
class Refining(Beside):
    """What a run keeps besides: the model that puts drafts together."""

    small: Draft | None = None
    corpus: Any = None
    counts: list[Counter[tuple[int, ...]]] = field(default_factory=lambda: [Counter(), Counter(), Counter()])
    counted: int = 0

    def count(self, run: Run) -> None:
        """Learn the text that is settled."""
        for end in range(self.counted, run.settled):
            for order, counter in enumerate(self.counts):
                if end >= order:
                    counter[tuple(run.seen[end - order : end + 1])] += 1
        self.counted = run.settled

    def logp(self, before: tuple[int, ...], token: int, vocab_size: int) -> float:
        """Of a token behind others: relative frequencies, of ever shorter contexts where nothing was seen, each time
        for less; the corpus stands between the text's trigrams and its bigrams."""
        scale = 1.0
        for order in range(min(len(before), 2), 0, -1):
            context = before[-order:]
            seen = self.counts[order][(*context, token)]
            if seen:
                return math.log(scale * seen / max(self.counts[order - 1][context], seen))
            if order == 2 and self.corpus is not None:
                known: Mapping[int, float] = self.corpus.get(context, {})
                if token in known:
                    return math.log(scale * min(known[token], 1.0))
            scale *= BACK_OFF
        return math.log(scale * (self.counts[0][token,] + 1) / (self.counted + vocab_size))
