"""When a confidence is high enough: two Beta distributions, of the confidences that were right and of those that were
not (Bae et al. 2023, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

GRID = 10
LOW, HIGH = 0.3, 0.9  # between which the threshold is looked for
EDGE = 1e-4  # confidences keep so far from 0 and 1


def fit_beta(values: Sequence[float]) -> tuple[float, float] | None:
    """The parameters of a Beta distribution with the mean and the variance of some values; None where they have no
    spread."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    if not 0 < variance < mean * (1 - mean):
        return None
    scale = mean * (1 - mean) / variance - 1
    return mean * scale, (1 - mean) * scale


def log_density(value: float, parameters: tuple[float, float]) -> float:
    a, b = parameters
    norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return (a - 1) * math.log(value) + (b - 1) * math.log(1 - value) - norm


def threshold(confidences: Sequence[float], right: Sequence[bool], zeta: float) -> float | None:
    """The first point of a grid at which a confidence is right with a chance above `zeta`, which is between 0 and 1;
    the last point where none is, and None where too little was seen of either sort."""
    clipped = [min(max(value, EDGE), 1 - EDGE) for value in confidences]
    parts = [[v for v, r in zip(clipped, right, strict=True) if r is sort] for sort in (True, False)]
    good, bad = (fit_beta(part) for part in parts)
    if good is None or bad is None:
        return None
    share = len(parts[0]) / len(clipped)
    points = [LOW + (HIGH - LOW) * i / (GRID - 1) for i in range(GRID)]
    for point in points:
        odds = log_density(point, good) + math.log(share) - log_density(point, bad) - math.log(1 - share)
        if odds > math.log(zeta / (1 - zeta)):
            return point
    return points[-1]
