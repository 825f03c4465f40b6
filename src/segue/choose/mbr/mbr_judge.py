"""MBR with a judge: a language model grades each answer beside another one that stands for the right one.

1. Draw N answers from the model, on forks of one prompt.
2. For every answer and every other one as its reference ask the judge for a grade from 1 to 5, and take the expectation
   of the grade over its tokens: smoother than the likeliest grade, and one forward a pair.
3. Give the answer with the best mean grade. `references` lowers the N (N - 1) pairs to N S.
4. With against="nothing" the judge sees no reference: best-of-N, the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.mbr.base import Consensus
from segue.choose.parts.judge import ALONE, Judge
from segue.choose.parts.quality import estimate
from segue.choose.parts.rerank import deliver, draw, ranked
from segue.choose.parts.utility import Utility, expected
from segue.models.lm import LM
from segue.models.run import Decoder, Run

AGAINST = ("samples", "nothing")


@dataclass(frozen=True)
class MbrJudge(Consensus):
    """The answer that a judge finds nearest to all the others: for open requests, where word overlap says little."""

    card = Card(
        paper=Paper(id="2410.02902", title="Better Instruction-Following Through Minimum Bayes Risk", year=2024),
        claim=Claim(
            value=None, unit="none", baseline="greedy", setting="+3.6 points on AlpacaEval, Prometheus-2-7B, to 70B"
        ),
        exact=(SameTarget(target="mbr_judge"),),
        departs="any language model judges, by default the model itself, with a short prompt of ours; expected instead "
        "of likeliest grades; no distillation into the model by DPO here, which is training",
        check="translation",
    )

    temperature: float = 0.7  # answers are sampled at, where the request itself is greedy
    judge: str | LM | Utility | None = None  # who grades: a path, a model or a Judge; left out: the model itself
    against: str = "samples"  # what an answer is graded beside: samples (MBR), nothing (best-of-N)
    show: bool = False  # the matrix of grades goes into the trace

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against not in AGAINST:
            raise ValueError(f"against={self.against!r} is not allowed: {' or '.join(AGAINST)}")
        if self.against == "nothing" and isinstance(self.judge, Utility) and not isinstance(self.judge, Judge):
            raise ValueError(f"against='nothing' is not allowed: {self.judge!r} compares two texts; give a Judge")

    def run(self, run: Run) -> Decoder[None]:
        drawn = yield from draw(run, self.inner, self.samples, temperature=self.temperature, duplicates=self.duplicates)
        judge = self.judge if isinstance(self.judge, Utility) else Judge(lm=self.judge)
        if len(drawn) == 1:
            pass  # nothing is to be chosen, so nobody is asked
        elif self.against == "samples":
            grades = yield from expected(run, judge, drawn, references=self.references, itself=False)
            if self.show:
                run.trace.append({"texts": [d.words for d in drawn], "utilities": grades.tolist()})
        else:
            assert isinstance(judge, Judge)
            alone = replace(judge, task=ALONE if isinstance(judge.task, str) else judge.task, reference="")
            for one, grade in zip(drawn, (yield from estimate(run, drawn, alone)), strict=True):
                one.score = grade
        best = ranked(drawn)
        run.trace.insert(0, {"drawn": sum(d.count for d in best), "counts": [d.count for d in best]})
        deliver(run, best)
