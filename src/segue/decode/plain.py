"""Plain decoding: one token per forward. Greedy at temperature 0, ancestral sampling otherwise.

1. Read the prompt.
2. Pick a token from the last row: arg-max, or a draw from the warped distribution.
3. Score that token, commit it, and go on at 2 until the text ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Want
from segue.models.run import Decoder, Forward, Run


@dataclass(frozen=True)
class Plain:
    """One token per forward: the baseline that every other method is measured against."""

    card = Card(
        paper=Paper(id="", title="Autoregressive decoding", year=0),
        claim=None,
        exact=(SameTokens(), SameDistribution()),
        needs=("logits",),
        check="spec",
    )

    def run(self, run: Run) -> Decoder[None]:
        scores = yield from run.prefill()
        token = run.pick(scores, -1)
        while run.emit([token], scores, [-1]):
            scores = yield Forward(run.sequence, DraftTree.root(token), Want(logits="last"))
            run.sequence.commit([0])
            token = run.pick(scores, -1)
