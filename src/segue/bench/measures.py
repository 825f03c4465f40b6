"""Figures over prompts that can be drawn again: means, ratios of sums, and sacrebleu's corpus scores.

A measure takes the rows of `draws` (S, P) to a figure each (S,), so that a difference between two sides is taken on the
same prompts in every draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from segue.bench.bootstrap import Floats, paired, ratios
from segue.bench.judge import optional


class Measure(Protocol):
    """A figure of weighted prompts."""

    @property
    def prompts(self) -> int:
        """P, how many it is over."""
        ...

    def __call__(self, weights: Floats) -> Floats:
        """(S, P) -> (S,)"""
        ...


@dataclass(frozen=True)
class Ratio:
    """The sum of `above` over prompts divided by that of `below`."""

    above: Sequence[float]
    below: Sequence[float]
    factor: float = 1.0

    @property
    def prompts(self) -> int:
        return paired(self.above, self.below)

    def __call__(self, weights: Floats) -> Floats:
        return self.factor * ratios(weights, self.above, self.below)


def mean(values: Sequence[float], factor: float = 1.0) -> Ratio:
    """The mean over prompts."""
    return Ratio(values, [1.0] * len(values), factor)


class Corpus:
    """sacrebleu's corpus score, 0 to 100: `metric` is "bleu" or "chrf" with sacrebleu's own defaults. Its sentences'
    counts (P, K) are taken once and added up for every draw, as sacrebleu's own resampling does."""

    def __init__(self, metric: str, texts: Sequence[str], references: Sequence[str]) -> None:
        self._metric = scorer(metric)
        counts = self._metric._extract_corpus_statistics(list(texts), [list(references)])
        self._counts = np.array(counts, dtype=np.float64)

    @property
    def prompts(self) -> int:
        return len(self._counts)

    def __call__(self, weights: Floats) -> Floats:
        score = self._metric._compute_score_from_stats
        return np.array([score(row).score for row in (weights @ self._counts).astype(int).tolist()])


def scorer(metric: str) -> Any:
    """sacrebleu's metric of that name."""
    library = optional("sacrebleu.metrics")
    return library.BLEU() if metric == "bleu" else library.CHRF()


def oracle(lists: Sequence[Sequence[str]], references: Sequence[str]) -> list[str]:
    """Of each list of answers the one nearest to its reference by sentence BLEU: what a perfect choice would give."""
    metric = optional("sacrebleu.metrics").BLEU(effective_order=True)

    def worth(text: str, reference: str) -> float:
        return float(metric.sentence_score(text, [reference]).score)

    return [max(texts, key=lambda t: worth(t, r)) for texts, r in zip(lists, references, strict=True)]


def distinct(texts: Sequence[str], n: int = 2) -> tuple[int, int]:
    """Distinct n-grams of words in a list of answers, and its words: their ratio is distinct-n (arXiv:1510.03055)."""
    words = [text.split() for text in texts]
    grams = {tuple(part[i : i + n]) for part in words for i in range(len(part) - n + 1)}
    return len(grams), sum(map(len, words))
