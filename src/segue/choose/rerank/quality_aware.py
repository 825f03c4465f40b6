"""Quality-aware decoding: the model writes many answers, estimates of their quality say which one is given.

1. Candidates: N samples on forks of one prompt, or the n-best list of a search.
2. Features h_k of each: estimates of quality without references (QE), log-probabilities, a model that reads backwards.
3. F-RR, fixed reranking: the largest of one feature. T-RR, tuned: the largest sum of w_k h_k, with w from minimum error
   rate training on answers whose references are known (`tuned`).
4. Two stages: the `keep` best by that ranking choose among themselves by minimum Bayes risk under `utility`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts import quality, rerank
from segue.choose.parts.judge import AT_ONCE
from segue.choose.parts.rerank import Drafter, deliver, draw, ranked
from segue.choose.parts.utility import Utility, expected, named
from segue.data import Completion
from segue.models.run import Decoder, Run
from segue.ops.mert import mert


@dataclass(frozen=True)
class QualityAware:
    """Ranks whole answers by estimates of their quality instead of their likelihood."""

    card = Card(
        paper=Paper(id="2205.00978", title="Quality-Aware Decoding for Neural Machine Translation", year=2022),
        claim=Claim(
            value=None, unit="none", baseline="beam search", setting="better COMET, BLEURT and human ratings, NMT"
        ),
        exact=(SameTarget(target="quality_aware"),),
        departs="estimates at hand stand where the paper has COMET-QE, TransQuest and MBART-QE; MERT is our own",
        check="translation",
    )

    inner: Drafter = "plain"  # who writes the answers, by name or as an object; a search gives its n-best list
    samples: int = 16  # answers written
    temperature: float = 1.0  # they are sampled at, where the request itself is greedy
    features: str | tuple[Any, ...] = "mean_logp"  # logp, mean_logp, length, reverse, embedding, judge, module:function
    weights: str | tuple[float, ...] = ""  # a number for each feature, e.g. 1,0.5; 1 each if left out
    utility: str | Utility = ""  # of a second stage by minimum Bayes risk; none if left out
    keep: int = 0  # distinct answers that reach the second stage; 0: all
    duplicates: str = "count"  # equal answers in the second stage: count or merge

    def __post_init__(self) -> None:
        rerank.check(self.samples, self.temperature, self.duplicates)
        if not self._features:
            raise ValueError(f"features={self.features!r} is not allowed: at least one of {', '.join(quality.NAMES)}")
        for feature in self._features:
            quality.check(feature)
        if len(self._weights) != len(self._features) or not all(w == w and abs(w) < 1e9 for w in self._weights):
            raise ValueError(
                f"weights={self.weights!r} is not allowed: {len(self._features)} numbers, one for each feature"
            )
        if self.utility:
            named(self.utility)
        if self.keep < 0 or (self.keep and not self.utility):
            raise ValueError(f"keep={self.keep} is not allowed: 0, or at least 1 with a utility for the second stage")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time: its answers, those read backwards, or a judge's."""
        return max(rerank.sequences(self.inner, self.samples), 1 + self.samples, 2 * AT_ONCE)

    @property
    def _features(self) -> tuple[Any, ...]:
        if isinstance(self.features, str):
            return tuple(name.strip() for name in self.features.split(",") if name.strip())
        return tuple(self.features)

    @property
    def _weights(self) -> tuple[float, ...]:
        if not isinstance(self.weights, str):
            return tuple(float(w) for w in self.weights) or (1.0,) * len(self._features)
        try:
            given = tuple(float(part) for part in self.weights.split(",") if part.strip())
        except ValueError:
            given = (float("nan"),)
        return given or (1.0,) * len(self._features)

    def run(self, run: Run) -> Decoder[None]:
        drawn = yield from draw(run, self.inner, self.samples, temperature=self.temperature, duplicates=self.duplicates)
        columns = []
        for feature in self._features:
            columns.append((yield from quality.estimate(run, drawn, feature)))
        table = {id(one): list(row) for one, row in zip(drawn, zip(*columns, strict=True), strict=True)}
        for one in drawn:
            one.score = sum(w * h for w, h in zip(self._weights, table[id(one)], strict=True))
        best = ranked(drawn)
        if self.utility:
            best = best[: self.keep or None]
            yield from expected(run, named(self.utility), best)
            best = ranked(best)
        run.trace.append({"counts": [one.count for one in best], "features": [table[id(one)] for one in best]})
        deliver(run, best)

    def tuned(
        self,
        answers: Sequence[Completion],
        references: Sequence[str],
        *,
        metric: str | Utility = "chrf",
        restarts: int = 20,
        seed: int = 0,
    ) -> QualityAware:
        """This method with the weights that rank best, by the mean metric against the references, what `answers` of it
        (of one stage) chose among."""
        if len(answers) != len(references) or not answers:
            raise ValueError(f"{len(answers)} answers and {len(references)} references: as many, and at least one")
        features, statistics = [], []
        for answer, reference in zip(answers, references, strict=True):
            rows = answer.trace[0].get("features", ()) if answer.trace else ()
            if not rows or answer.candidates is None or len(rows[0]) != len(self._features):
                raise ValueError(f"an answer has no {len(self._features)} features: make it with this method")
            features.append(np.array(rows, dtype=np.float64))
            statistics.append(named(metric).matrix([c.text for c in answer.candidates], [reference]))
        weights, _ = mert(features, statistics, restarts=restarts, seed=seed)
        return replace(self, weights=tuple(float(w) for w in weights))
