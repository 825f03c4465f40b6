"""CLaSp: the model drafts with some of its own layers skipped, chosen anew by what the last accepted token showed.

Skipping is judged by the hidden states h_0 .. h_L that verification computed anyway. Per round:
1. Where K tokens were accepted since the last choice, choose the M layers to skip by the programme below.
2. Draft with the other layers on the model's own cache, until a token whose probability is below `threshold`, or gamma.
3. Verify with all layers; the skipped layers' rows are computed there.
4. The programme: g(0, 0) = h_0; for i = 1 .. L and j = 0 .. min(i, M) layer i is kept, f_i(g(i-1, j)), or skipped,
   g(i-1, j-1), whichever is closer to h_i by cosine (alg. 1). One forward of layer i runs all its states.
5. Going back from g(L, M) gives the layers.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.draft import by_layers, chain, drafting
from segue.models.run import Forward, Request, Run


@dataclass(slots=True)
class Skips:
    """The layers that draft, and what the next choice will be made from."""

    kept: tuple[int, ...]
    count: int  # M
    layers: int  # L
    accepted: int = 0  # tokens since the last choice
    due: bool = True
    states: Tensor | None = None  # (L + 1, D) of the last accepted token


@dataclass(frozen=True)
class Clasp(Speculative):
    """Self-speculation with skipped layers: no draft model and no training; pays where layers are many and alike."""

    card = Card(
        paper=Paper(id="2505.24196", title="CLaSp: In-Context Layer Skip for Self-Speculative Decoding", year=2025),
        claim=Claim(value=1.7, unit="speed-up", baseline="autoregressive", setting="LLaMA3 series, 1.3 to 1.7"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "hidden states", "a choice of layers"),
        departs="before the first choice the skipped layers are spread over the middle",
        check="spec",
    )

    free = False

    skip: float = 0.5  # share of the layers that is skipped (M = skip * L)
    gamma: int = 8  # tokens drafted per round, at most
    threshold: float = 0.7  # drafting ends behind a token that the draft gives less than this
    interval: int = 64  # K: accepted tokens between two choices

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip={self.skip} is not allowed: a share of the layers, from 0 to less than 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is not allowed: from 0 (never stop early) to 1")
        for name in ("gamma", "interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def price(self, run: Run, tokens: int) -> float:
        return tokens * (1 - self.skip) * run.step_seconds(1)

    def start(self, run: Run) -> Skips:
        layers = run.lm.layers
        count = min(int(self.skip * layers), layers - 1)
        return Skips(spread(layers, count), count, layers)

    def wanted(self, state: Skips) -> Want:
        return Want(hidden=tuple(range(state.layers + 1))) if state.due and state.count else Want()

    def propose(self, run: Run, state: Skips, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        if state.states is not None:
            state.kept = yield from choose(run, state.states, state.count)
            state.states, state.due, state.accepted = None, False, 0
        steps = min(self.gamma, budget.depth, budget.nodes)
        read = by_layers(run.sequence, lambda ids: state.kept)
        with drafting(run.sequence):
            return (yield from chain(run, steps, read, "clasp", self.threshold))

    def observe(self, run: Run, state: Skips, outcome: Outcome) -> None:
        state.accepted += len(outcome.path)
        state.due = state.due or state.accepted >= self.interval
        if state.due and outcome.scores.hidden:
            node = outcome.path[-1]
            state.states = torch.stack([outcome.scores.hidden[i][node] for i in range(state.layers + 1)])


def spread(layers: int, count: int) -> tuple[int, ...]:
    """The layers that run when `count` are skipped from the middle out, every second one first."""
    inner = sorted(range(layers), key=lambda i: (i % 2 == 0, abs(i - (layers - 1) / 2)))
    return tuple(sorted(set(range(layers)) - set(inner[:count])))


def choose(run: Run, states: Tensor, count: int) -> Generator[Request, Scores, tuple[int, ...]]:
    """The layers to keep: alg. 1 on the states (L + 1, D) of the last committed token, `count` layers skipped."""
    layers, place = len(states) - 1, len(run.sequence) - 1
    context = run.sequence.excerpt(torch.arange(place))  # what that token saw besides itself
    token = run.sequence.tokens[place]
    best = states[:1]  # g(i, j) for j = 0, 1, ...
    skipped: list[list[bool]] = []  # [i - 1][j]: layer i was skipped on the way to g(i, j)
    for i in range(1, layers + 1):
        forest = DraftTree.alternatives([token] * len(best))
        scores = yield Forward(context, forest, Want(logits="none", layers=(i - 1,), states=best, hidden=(1,)))
        keep = scores.hidden[1]
        width = min(i, count) + 1
        rows, ways = [], []
        for j in range(width):
            kept = float(cosine_similarity(keep[j], states[i], 0)) if j < len(keep) else -2.0
            left = float(cosine_similarity(best[j - 1], states[i], 0)) if j else -2.0
            ways.append(left > kept)
            rows.append(best[j - 1] if left > kept else keep[j])
        best = torch.stack(rows)
        skipped.append(ways)
    context.release()
    kept_layers, j = [], count
    for i in range(layers, 0, -1):
        if skipped[i - 1][j]:
            j -= 1
        else:
            kept_layers.append(i - 1)
    return tuple(kept_layers[::-1])
