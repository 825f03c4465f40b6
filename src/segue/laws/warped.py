"""What sampling settings make of scores, in plain Python on lists: the formulas that decoders are held to."""

from __future__ import annotations

import math

from segue.data import Settings


def warped(scores: list[float], settings: Settings) -> list[float]:
    """Probabilities after temperature, top-k, top-p, min-p and typical-p, each acting on what the last one left."""
    p = softmax([s / settings.temperature for s in scores])
    order = sorted(range(len(p)), key=lambda t: -p[t])
    if settings.top_k:
        least = p[order[min(settings.top_k, len(p)) - 1]]
        p = share([m if m >= least else 0.0 for m in p])
    if settings.top_p < 1:
        before = [sum(m for m in p if m > mine) for mine in p]
        p = share([m if b < settings.top_p else 0.0 for m, b in zip(p, before, strict=True)])
    if settings.min_p:
        p = share([m if m >= settings.min_p * max(p) else 0.0 for m in p])
    if settings.typical_p < 1:
        entropy = -sum(m * math.log(m) for m in p if m > 0)
        strange = [abs(-math.log(m) - entropy) if m > 0 else math.inf for m in p]
        before = [sum(m for m, s in zip(p, strange, strict=True) if s < mine) for mine in strange]
        p = share([m if b < settings.typical_p else 0.0 for m, b in zip(p, before, strict=True)])
    return p


def softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    return share([math.exp(s - largest) for s in scores])


def share(mass: list[float]) -> list[float]:
    """Mass as shares of its sum."""
    total = sum(mass)
    return [m / total for m in mass]
