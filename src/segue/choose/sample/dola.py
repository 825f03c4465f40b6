"""DoLa: the last layer's distribution against that of an early layer, which knows less.

1. Read the last token; keep its hidden states at the candidate (premature) layers.
2. Give each of them to the last norm and the head: q_j, what the model would write if it ended there (early exit).
3. The premature layer M is the candidate whose q_j is farthest from the last layer's q_N, by Jensen-Shannon divergence;
   it is chosen anew for every token.
4. The score of a token is log q_N - log q_M where q_N is at least `relative_top` times its largest value, and minus
   infinity elsewhere.
5. The request's settings act on these scores as they would on logits; take the arg-max, or draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.sample.base import reach
from segue.data import CapabilityError, DraftTree, Want
from segue.models.run import Decoder, Forward, Run
from segue.ops.divergence import jensen_shannon

BUCKETS = ("low", "high")
DEEP = 40  # layers above which the buckets are as wide as in a model of 40


@dataclass(frozen=True)
class DoLa:
    """What the later layers add is where facts come in: no second model, only the head once more for each candidate."""

    card = Card(
        paper=Paper(
            id="2309.03883",
            title="DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
            year=2023,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="greedy decoding",
            setting="TruthfulQA, 12 to 17 percentage points more truthful answers with LLaMA",
        ),
        exact=(SameTarget(target="dola"),),
        needs=("logits", "hidden states"),
        departs="early states pass the last norm before the head, which the released code leaves out; the divergence "
        "is the paper's, both terms towards the mean, for each sequence by itself and not over a batch; tokens that "
        "the request forbids do not count as the likeliest",
        check="spec",
    )

    layers: str | Sequence[int] = "low"  # candidates: low, high, or numbers separated by commas (0: the embeddings)
    relative_top: float = 0.1  # tokens below this share of the likeliest are left out; 1 leaves the likeliest alone

    def __post_init__(self) -> None:
        if not 0 < self.relative_top <= 1:
            raise ValueError(
                f"relative_top={self.relative_top} is not allowed: above 0 (all tokens) and at most 1 (the likeliest)"
            )
        if self.layers not in BUCKETS:
            numbers(self.layers)

    def run(self, run: Run) -> Decoder[None]:
        refusal = run.lm.refusal("dola", self.card.needs)
        if refusal:
            raise CapabilityError(refusal)
        layers = candidates(self.layers, run.lm.layers, run.lm.tied)
        want = Want(logits="last", hidden=layers)
        exits = run.lm.sequence()  # early states pass no layer, so it never holds a row
        yield from reach(run, run.ids[:-1])
        while True:
            scores = yield Forward(run.sequence, DraftTree.root(run.ids[-1]), want)
            run.sequence.commit([0])
            states = torch.cat([scores.hidden[layer][-1:] for layer in layers])
            alike = DraftTree.alternatives([run.ids[-1]] * len(layers))
            early = yield Forward(exits, alike, Want(layers=(), states=states))
            token = self._pick(run, scores.row(-1), early.logits)
            if not run.emit([token], scores, [-1]):
                return

    def _pick(self, run: Run, row: Tensor, early: Tensor) -> int:
        """A token from the last layer's logits (V,) and those of the candidates (J, V)."""
        dtype = torch.promote_types(row.dtype, torch.float32)
        mature, premature = row.to(dtype).log_softmax(-1), early.to(dtype).log_softmax(-1)
        farthest = jensen_shannon(mature, premature).argmax()  # section 2.2
        allowed = run.target.processed(row, run.ids, warp=False) > float("-inf")
        if not bool(allowed.any()):
            raise ValueError(
                "the request's settings forbid every token here: relax min_tokens, bad_words or logit_bias"
            )
        least = mature[allowed].max() + math.log(self.relative_top)
        head = allowed & (mature >= least)  # section 2.3
        contrast = (mature - premature[farthest]).masked_fill(~head, float("-inf"))
        if run.target.greedy:
            return int(run.target.processed(contrast, run.ids).argmax())
        return run.chance.index(run.target.p(contrast, run.ids))


def numbers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """Layers that are named one by one."""
    try:
        found = tuple(int(n) for n in (layers.split(",") if isinstance(layers, str) else layers))
    except (TypeError, ValueError):
        found = ()
    if not found or min(found) < 0:
        raise ValueError(f"layers={layers!r} is not allowed: low, high, or numbers from 0, as in 0,2,4")
    return tuple(sorted(set(found)))


def candidates(layers: str | Sequence[int], count: int, tied: bool) -> tuple[int, ...]:
    """The premature layers of a model with `count` layers: every second one of its first half (low) or of its second
    half (high), at most twenty layers from the end. Where head and embeddings are `tied` the low ones begin at layer 2,
    since the head takes embeddings back to the token that they came from (as in transformers' implementation)."""
    if layers == "high":
        return tuple(range(max(count // 2, count - DEEP // 2), count, 2))
    if layers == "low":
        first = min(2, count - 1) if tied else 0
        return tuple(range(first, min(count, DEEP) // 2, 2)) or (first,)
    wrong = [n for n in numbers(layers) if n >= count]
    if wrong:
        raise ValueError(
            f"layers={layers!r} is not allowed: layer {wrong[0]} of a model with {count} is none before the last; name "
            f"some from 0 (the embeddings) to {count - 1}"
        )
    return numbers(layers)
