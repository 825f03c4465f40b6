"""Contrastive search: a likely token whose hidden state is unlike that of everything written so far.

1. Read the prompt; keep the last hidden states h_1 .. h_{t-1} of its tokens.
2. V(k) are the k likeliest next tokens; read all of them in one forward, which gives h_v of each v.
3. The degeneration penalty of v is the largest cosine of h_v with h_1 .. h_{t-1}, prompt and output alike.
4. Take the v with the largest (1 - alpha) * p(v) - alpha * penalty; keep its row of the cache, drop the others.
5. Go on from 2 with h_v as h_t.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.lookahead import LAST, Step, check_width, look_ahead
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class ContrastiveSearch:
    """Text that neither repeats itself nor is drawn at random: deterministic, at the price of k rows a token."""

    card = Card(
        paper=Paper(id="2202.06417", title="A Contrastive Framework for Neural Text Generation", year=2022),
        claim=Claim(
            value=None,
            unit="none",
            baseline="greedy, beam search and nucleus sampling",
            setting="more diverse and coherent open-ended text and dialogue, by automatic and human judgement",
        ),
        exact=(SameTarget(target="contrastive_search"),),
        needs=("logits", "hidden states", "tree attention"),
        departs="the model is taken as it is, where the paper also trains it for isotropic states (SimCTG); settings "
        "of the request act on p, and the choice stays the best score at any temperature",
        check="spec",
    )

    alpha: float = 0.6  # weight of the degeneration penalty; 0 is greedy decoding
    k: int = 4  # candidates at a step; 1 is greedy decoding

    needs = LAST

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not allowed: from 0 (greedy) to 1 (the penalty alone)")
        check_width("k", self.k)

    def run(self, run: Run) -> Decoder[None]:
        yield from look_ahead(run, "contrastive_search", self.k, self._choose)

    def _choose(self, step: Step) -> int:
        penalty = step.cosines().max(-1).values
        return int(((1 - self.alpha) * step.p - self.alpha * penalty).argmax())
