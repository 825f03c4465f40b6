"""Limit: approximate in general, exact where a knob reaches a value, and nearer to exact on the way there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from segue.card import Limit
from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.same_distribution import TOLERANCE, divergence
from segue.models.lm import LM
from segue.models.method import Method

WAY = (0.25, 0.5, 0.75, 1.0)  # as shares of the way from where it begins to the exact value

Case = tuple[LM, Sequence[int], Settings]


def limit(
    make: Callable[[LM, float], Method], promise: Limit, cases: Sequence[Case], values: Sequence[float] | None = None
) -> list[float]:
    """Mean total variation at each value of the knob: it must fall from value to value, and vanish at the last.

    `make` builds the method for a model with the knob at a value; `values` lead to `promise.exact_at`.
    """
    begin, end = promise.begin, promise.exact_at
    way = list(values) if values is not None else [begin + share * (end - begin) for share in WAY]
    if way[-1] != promise.exact_at:
        raise ValueError(f"values={way} is not allowed: the last must be {promise.exact_at}, where the method is exact")
    means = [sum(divergence(make(lm, value), lm, p, s) for lm, p, s in cases) / len(cases) for value in way]
    seen = ", ".join(f"{value:g}: {mean:.3g}" for value, mean in zip(way, means, strict=True))
    if not means[-1] <= TOLERANCE:
        raise LawBroken(f"{promise.knob}={way[-1]:g} should be exact, but the divergences are {seen}")
    if any(later >= earlier for earlier, later in itertools.pairwise(means)):
        raise LawBroken(f"the divergence does not shrink on the way of {promise.knob} to {way[-1]:g}: {seen}")
    return means
