"""Minimum Bayes risk: not the likeliest text, but the one that agrees best with all that the model might have said.

1. Draw N answers y_1 .. y_N from the model, on forks of one prompt.
2. Compute the utility matrix U_ij = u(y_i, y_j): what y_i is worth if y_j is right. Equal texts are computed once.
3. An answer's expected utility is the mean of its row, every draw counting once; or over S draws taken at random.
4. Give the answer with the largest; of equal ones the likelier.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.mbr.base import Consensus
from segue.choose.parts.rerank import deliver, draw, ranked
from segue.choose.parts.utility import Utility, expected, named
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class Mbr(Consensus):
    """The answer that is nearest to all the others: robust where the likeliest one is odd."""

    card = Card(
        paper=Paper(
            id="2108.04718",
            title="Sampling-Based Approximations to Minimum Bayes Risk Decoding for Neural Machine Translation",
            year=2021,
        ),
        claim=Claim(value=None, unit="none", baseline="beam search", setting="quality by the utility; no speed"),
        exact=(SameTarget(target="mbr"),),
        departs="the same draws are candidates and references; equal texts are scored once",
        check="translation",
    )

    utility: str | Utility = "chrf"  # chrf, bleu, embedding, judge, module:function, or an object
    itself: bool = True  # a draw is a reference for itself as well
    show: bool = False  # the utility matrix goes into the trace

    def __post_init__(self) -> None:
        super().__post_init__()
        named(self.utility)

    def run(self, run: Run) -> Decoder[None]:
        drawn = yield from draw(run, self.inner, self.samples, temperature=self.temperature, duplicates=self.duplicates)
        utilities = yield from expected(run, named(self.utility), drawn, references=self.references, itself=self.itself)
        run.trace.append({"drawn": sum(d.count for d in drawn), "counts": [d.count for d in ranked(drawn)]})
        if self.show:
            run.trace.append({"texts": [d.words for d in drawn], "utilities": utilities.tolist()})
        deliver(run, ranked(drawn))
