"""Minimum error rate training (Och 2003): weights of a linear ranking that make the chosen candidates best by a metric
of the whole corpus.

1. Along a line w + t d the score of every candidate is a line in t, so the first-ranked one of a sentence changes only
   at the corners of the upper envelope of its lines.
2. Sweep the corners of all sentences in order of t, adding up what the metric needs, and go to the middle of the
   interval in which the corpus scores best.
3. Repeat along every coordinate, and along random directions, until nothing improves; restart from random weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Corpus = Callable[[Array], float]  # from the summed statistics (S,) of the chosen candidates; more is better


def mert(
    features: Sequence[Array],
    statistics: Sequence[Array],
    *,
    corpus: Corpus | None = None,
    restarts: int = 20,
    seed: int = 0,
) -> tuple[Array, float]:
    """The weights (K,), of absolute sum 1, and the corpus score that they reach.

    `features`: (n_i, K) of the candidates of each sentence. `statistics`: (n_i, S) of the same, additive over sentences
    (for a mean of sentence scores those scores, S = 1). `corpus`: what is maximised; the mean of the first if left out.
    """
    if not features or len(features) != len(statistics):
        raise ValueError(
            f"{len(features)} sentences with features and {len(statistics)} with statistics: as many, >= 1"
        )
    for i, (mine, facts) in enumerate(zip(features, statistics, strict=True)):
        if mine.ndim != 2 or facts.ndim != 2 or len(mine) != len(facts) or not len(mine):
            raise ValueError(
                f"sentence {i}: features {mine.shape} and statistics {facts.shape} are not (n, K) and (n, S)"
            )
        if not (np.isfinite(mine).all() and np.isfinite(facts).all()):
            raise ValueError(f"sentence {i} has features or statistics that are not finite")
    goal = corpus or (lambda totals: float(totals[0]) / len(features))
    size = features[0].shape[1]
    chance = np.random.default_rng(seed)
    starts: list[Array] = [np.ones(size), *chance.standard_normal((restarts, size))]
    best, reached = starts[0], -math.inf
    for start in starts:
        weights, score = _climb(start, features, statistics, goal, chance)
        if score > reached:
            best, reached = weights, score
    return best / np.abs(best).sum(), reached


def chosen(weights: Array, features: Sequence[Array]) -> list[int]:
    """The first-ranked candidate of each sentence."""
    return [int((mine @ weights).argmax()) for mine in features]


def _climb(
    weights: Array, features: Sequence[Array], statistics: Sequence[Array], goal: Corpus, chance: np.random.Generator
) -> tuple[Array, float]:
    """Line searches until none improves."""

    def value(at: Array) -> float:
        picks = chosen(at, features)
        return goal(np.sum([facts[i] for facts, i in zip(statistics, picks, strict=True)], axis=0))

    score = value(weights)
    while True:
        before = score
        coordinates = list(np.eye(len(weights)))
        for direction in [*coordinates, *chance.standard_normal((len(weights), len(weights)))]:
            step = _search(weights, direction, features, statistics, goal)
            # Counted again as a user of the weights would choose: a corner that rounding moved is no gain.
            there = weights + step * direction
            if np.abs(there).sum() > 0 and (reached := value(there)) > score + 1e-12:
                weights, score = there / np.abs(there).sum(), reached
        if score <= before + 1e-12:
            return weights, score


def _search(
    weights: Array, direction: Array, features: Sequence[Array], statistics: Sequence[Array], goal: Corpus
) -> float:
    """The t at which the corpus is best."""
    totals = np.zeros(statistics[0].shape[1])
    changes: list[tuple[float, int, int, int]] = []
    for i, mine in enumerate(features):
        corners = envelope(mine @ weights, mine @ direction)
        totals = totals + statistics[i][corners[0][1]]
        pairs = itertools.pairwise(corners)
        changes += [(t, i, old, new) for (_, old), (t, new) in pairs]
    changes.sort()
    if not changes:
        return 0.0
    best, at = goal(totals), changes[0][0] - 1.0
    for k, (t, i, old, new) in enumerate(changes):
        totals = totals + statistics[i][new] - statistics[i][old]
        until = changes[k + 1][0] if k + 1 < len(changes) else t + 2.0
        if until - t > 1e-12 * max(1.0, abs(t)) and (score := goal(totals)) > best:
            best, at = score, (t + until) / 2
    return at


def envelope(offsets: Array, slopes: Array) -> list[tuple[float, int]]:
    """The upper envelope of lines offset + slope * t: (t from which it holds, which line), from t = -inf on."""
    order = sorted(range(len(offsets)), key=lambda i: (slopes[i], offsets[i]))
    hull: list[tuple[float, int]] = []
    for i in order:
        if hull and slopes[hull[-1][1]] == slopes[i]:
            hull.pop()  # parallel and below
        while hull:
            since, top = hull[-1]
            t = float((offsets[top] - offsets[i]) / (slopes[i] - slopes[top]))
            if t > since:
                hull.append((t, i))
                break
            hull.pop()
        else:
            hull.append((-math.inf, i))
    return hull
