"""Minimum error rate training against a grid of all directions, and the envelope against the maximum of its lines."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segue.ops.mert import chosen, envelope, mert

Case = tuple[list[np.ndarray], list[np.ndarray]]


def case(seed: int, sentences: int = 6, size: int = 2, width: int = 1) -> Case:
    chance = np.random.default_rng(seed)
    counts = chance.integers(2, 9, sentences)
    return [chance.normal(size=(n, size)) for n in counts], [chance.uniform(size=(n, width)) for n in counts]


@pytest.mark.parametrize("seed", range(6))
def test_two_features_are_tuned_as_by_a_fine_grid(seed: int) -> None:
    features, quality = case(seed)
    weights, reached = mert(features, quality)
    best = -math.inf
    for angle in np.linspace(0, 2 * math.pi, 20_000, endpoint=False):
        picks = chosen(np.array([math.cos(angle), math.sin(angle)]), features)
        best = max(best, float(np.mean([q[i, 0] for q, i in zip(quality, picks, strict=True)])))
    assert reached == pytest.approx(best, abs=1e-12)
    picks = chosen(weights, features)
    assert np.mean([q[i, 0] for q, i in zip(quality, picks, strict=True)]) == pytest.approx(reached)
    assert np.abs(weights).sum() == pytest.approx(1)


def test_a_metric_of_the_whole_corpus_is_what_is_maximised() -> None:
    features, statistics = case(7, width=2)

    def ratio(totals: np.ndarray) -> float:  # no mean of sentence scores
        return float(totals[0] / totals[1])

    _, reached = mert(features, statistics, corpus=ratio, restarts=40)
    best = -math.inf
    for angle in np.linspace(0, 2 * math.pi, 20_000, endpoint=False):
        picks = chosen(np.array([math.cos(angle), math.sin(angle)]), features)
        best = max(best, ratio(np.sum([s[i] for s, i in zip(statistics, picks, strict=True)], axis=0)))
    assert reached == pytest.approx(best, abs=1e-12)


def test_more_features_and_restarts_do_no_harm() -> None:
    features, quality = case(3, sentences=10, size=5)
    scores = [mert(features, quality, restarts=n)[1] for n in (0, 5, 30)]
    assert scores == sorted(scores)
    most = np.mean([q.max() for q in quality])
    chance = np.random.default_rng(0)
    tried = [chosen(chance.normal(size=5), features) for _ in range(3000)]
    found = max(np.mean([q[i, 0] for q, i in zip(quality, picks, strict=True)]) for picks in tried)
    assert found - 1e-12 <= scores[-1] <= most


def test_the_envelope_is_the_maximum_of_its_lines() -> None:
    chance = np.random.default_rng(1)
    for n in (1, 2, 5, 30):
        offsets, slopes = chance.normal(size=n), np.round(chance.normal(size=n), 1)  # some are parallel
        corners = envelope(offsets, slopes)
        assert corners[0][0] == -math.inf
        ends = [t for t, _ in corners[1:]] + [math.inf]
        for t in np.linspace(-30, 30, 2001):
            line = next(i for (_, i), end in zip(corners, ends, strict=True) if t <= end)
            assert offsets[line] + slopes[line] * t == pytest.approx(float((offsets + slopes * t).max()), abs=1e-9)


def test_bad_input_names_the_sentence() -> None:
    features, quality = case(0)
    with pytest.raises(ValueError, match="0 sentences with features"):
        mert([], [])
    with pytest.raises(ValueError, match="sentence 1: features"):
        mert(features, [quality[0], quality[1][:1], *quality[2:]])
    with pytest.raises(ValueError, match="sentence 0 has features or statistics that are not finite"):
        mert([features[0] * np.nan, *features[1:]], quality)
