"""Sparse-to-Dense: the model drafts with a few rows of its cache and verifies with all of them.

Most of a long context gets next to no attention from what asks about it, so most next tokens do not need it. Per run:
1. The last `queries` tokens of the prompt are the question; in every layer each KV head scores each earlier token by
   the mean attention that the question's rows pay it (over the rows and over the query heads of the group).
2. Its `keep` best tokens, the question and all later tokens are the sparse cache; positions stay as they are.
3. Per round draft gamma tokens over the sparse cache, one by one.
4. Verify them over the full cache; the sparse cache takes over the rows of what was accepted.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.draft import Draft, chain
from segue.models.run import Forward, Request, Run
from segue.models.sequence import Mark


@dataclass(slots=True)
class Sparse:
    """The draft over the sparse cache, once it was chosen."""

    draft: Draft | None = None


@dataclass(frozen=True)
class SparseToDense(Speculative):
    """Self-speculation over a sparse cache: pays where the context is so long that attention is the cost of a step."""

    card = Card(
        paper=Paper(
            id="2505.19155",
            title="Sparse-to-Dense: A Free Lunch for Lossless Acceleration of Video Understanding in LLMs",
            year=2025,
        ),
        claim=Claim(value=1.94, unit="speed-up", baseline="autoregressive", setting="Qwen2-VL 7B, MLVU, at best"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "attention weights", "a long prompt"),
        departs="any earlier part of the prompt stands where the paper has the video, the prompt's end for its text; "
        "layers with a sliding window keep all rows",
        check="spec",
    )

    free = False

    keep: int = 1024  # K: earlier tokens kept per layer and KV head
    queries: int = 16  # tokens at the prompt's end whose attention decides
    gamma: int = 9  # tokens drafted per round, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "queries", "gamma"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def price(self, run: Run, tokens: int) -> float:
        return tokens * run.step_seconds(1)

    def start(self, run: Run) -> Sparse:
        return Sparse()

    def propose(self, run: Run, state: Sparse, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        if state.draft is None:
            state.draft = yield from self._sparse(run)
        steps = min(self.gamma, budget.depth, budget.nodes)
        return (yield from chain(run, steps, state.draft.read, "sparse_to_dense"))

    def rewind(self, run: Run, state: Sparse) -> None:
        raise ValueError(
            "sparse_to_dense cannot draft for a draft model: its cache follows a text that is never cut back"
        )

    def observe(self, run: Run, state: Sparse, outcome: Outcome) -> None:
        if state.draft is not None:
            state.draft.sequence.follow(run.sequence)

    def _sparse(self, run: Run) -> Generator[Request, Scores, Draft]:
        """Read the prompt's end a second time, now with its attention, and keep what it looks at."""
        sequence, end = run.sequence, len(run.sequence)
        queries = min(self.queries, end)
        question = sequence.tokens[end - queries :]
        layers = tuple(range(run.lm.layers))
        sequence.rollback(Mark(end - queries, None))
        want = Want(logits="none", attention=(layers, tuple(range(queries))))
        sequence.drafts = True
        try:
            scores = yield Forward(sequence, DraftTree.chain(question), want)
        finally:
            sequence.drafts = False
        sequence.commit(list(range(queries)), run.ids[-1])
        earlier = end - queries
        kept: dict[int, Tensor] = {}
        if self.keep < earlier:
            for layer in set(layers) - run.lm.windowed:
                weights = scores.attention[layer][:, :, :earlier]
                kept[layer] = rows(weights, run.lm.kv_heads(layer), self.keep, end)
        return Draft(sequence.view(kept), run.lm.vocab_size)


def rows(weights: Tensor, heads: int, keep: int, end: int) -> Tensor:
    """The rows (G, keep + the question) that `heads` KV heads keep of a layer, ascending, from the attention weights
    (H, queries, earlier) of the question to what came before it; the text so far has `end` tokens."""
    score = weights.float().mean(1).view(heads, -1, weights.shape[-1]).mean(1)
    best = score.topk(keep, -1).indices.sort(-1).values
    question = torch.arange(weights.shape[-1], end, device=best.device).expand(heads, -1)
    return torch.cat([best, question], -1)
