"""The bootstrap against scipy's, against what is known of a distribution, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from segue.bench.bootstrap import SAMPLES, draws, interval, paired, ratios
from segue.bench.measures import Ratio, mean


def test_a_draw_is_of_as_many_prompts_and_the_first_is_none() -> None:
    weights = draws(7)
    assert weights.shape == (SAMPLES + 1, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 7).all()
    assert (weights[1:] == 0).any()
    assert (draws(7) == weights).all()
    assert (draws(7, seed=1) != weights).any()


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(5).gamma(2, 1, 60)
    estimate, low, high = interval(mean(values.tolist())(draws(60)))
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert estimate == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.05 * width)


def test_a_paired_difference_is_scipys_and_narrower_than_two_unpaired_ones() -> None:
    source = np.random.default_rng(6)
    base = source.gamma(4, 1, 50)
    better = base + 0.2 + source.normal(0, 0.1, 50)
    weights = draws(50)
    ours, theirs = (mean(values.tolist())(weights) for values in (better, base))
    _, low, high = interval(ours - theirs)
    expected = bootstrap(
        (better, base), lambda a, b, axis=-1: a.mean(axis) - b.mean(axis), paired=True, method="percentile",
        n_resamples=9999, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.06 * width)
    _, one, other = interval(ours - mean(base.tolist())(draws(50, seed=1)))
    assert other - one > 3 * (high - low)


def test_the_interval_covers_what_it_says() -> None:
    """95% of intervals hold the true ratio of means, 2 here; of 300, fewer than 91% would be five deviations away less
    the percentile bootstrap's own shortfall at 60 prompts."""
    source = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        below = source.gamma(5, 1, 60)
        above = 2 * below * source.lognormal(-0.02, 0.2, 60)
        _, low, high = interval(Ratio(above.tolist(), below.tolist())(draws(60, trial)))
        covered += low <= 2 <= high
    assert 0.90 < covered / 300 < 0.985


def test_nothing_below_is_nothing() -> None:
    assert ratios(np.ones((2, 2)), [1.0, 1.0], [0.0, 0.0]).tolist() == [0.0, 0.0]


def test_what_cannot_be_paired_is_refused() -> None:
    assert paired([1.0, 2.0], [3.0, 4.0]) == 2
    with pytest.raises(ValueError, match="2 prompts cannot be paired with 3"):
        paired([1.0, 2.0], [3.0, 4.0, 5.0])
    with pytest.raises(ValueError, match="no interval over no prompts"):
        paired([], [])
