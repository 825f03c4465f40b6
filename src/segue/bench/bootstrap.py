"""Intervals of figures over prompts: the paired percentile bootstrap (Efron and Tibshirani 1993, chapters 8 and 13).

Prompts are drawn with replacement; both sides of a comparison keep the prompts that were drawn. A draw is a row of
weights, how often each prompt is in it, so that any figure made of sums over prompts takes one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLES = 2000
Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # estimate, lower and upper end of 95%


def draws(prompts: int, seed: int = 0) -> Floats:
    """(SAMPLES + 1, P): the prompts as they are, each once, then SAMPLES draws of as many."""
    weights = np.ones((SAMPLES + 1, prompts))
    weights[1:] = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), SAMPLES)
    return weights


def interval(figures: Floats) -> Interval:
    """From a figure of every row of `draws` (SAMPLES + 1,) to the estimate with the ends of its 95%."""
    low, high = np.percentile(figures[1:], [2.5, 97.5])
    return float(figures[0]), float(low), float(high)


def ratios(weights: Floats, above: ArrayLike, below: ArrayLike) -> Floats:
    """(draws,): sums over prompts of `above` (P,) divided by those of `below` (P,); 0 where these are 0."""
    under: Floats = weights @ np.asarray(below, dtype=np.float64)
    return np.divide(weights @ np.asarray(above, dtype=np.float64), under, out=np.zeros_like(under), where=under > 0)


def paired(*lists: Sequence[float] | Floats) -> int:
    """How many prompts several lists of figures are over; ValueError where they cannot be paired."""
    counts = [len(part) for part in lists]
    if len(set(counts)) != 1:
        raise ValueError(
            f"{counts[0]} prompts cannot be paired with {max(set(counts[1:]) - {counts[0]})}: count both on the same"
        )
    if not counts[0]:
        raise ValueError("there is no interval over no prompts: give at least one")
    return counts[0]
