"""Figures against scipy's bootstrap and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from segue.bench.contest import Row
from segue.bench.figures import looping, ratio, summary
from segue.data import Stats


def test_looping_outputs_are_told_apart() -> None:
    assert looping([1, 2, 3] * 10)
    assert not looping(list(range(30)))
    assert not looping([])


def test_the_ratio_is_of_sums_and_the_median_of_rounds() -> None:
    base = Row("base", seconds=[[2.0], [4.0], [9.0]], tokens=[[1] * 10])
    fast = Row("fast", seconds=[[1.0], [1.0], [3.0]], tokens=[[1] * 10])
    assert ratio(fast, base) == (3.0, 3.0, 3.0)  # one prompt: nothing to resample
    shorter = Row("shorter", seconds=[[1.0], [1.0], [3.0]], tokens=[[1] * 5])
    assert ratio(shorter, base)[0] == 1.5


def test_the_interval_is_scipys() -> None:
    source = np.random.default_rng(3)
    theirs = source.gamma(5, 0.2, 40)
    ours = theirs / source.normal(2.0, 0.4, 40).clip(1)
    base = Row("base", seconds=[theirs.tolist()], tokens=[[1] * 8] * 40)
    row = Row("row", seconds=[ours.tolist()], tokens=[[1] * 8] * 40)
    middle, low, high = ratio(row, base)
    assert middle == pytest.approx(theirs.sum() / ours.sum())
    expected = bootstrap(
        (theirs, ours), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert low == pytest.approx(expected.low, rel=0.03)
    assert high == pytest.approx(expected.high, rel=0.03)


def test_a_summary_adds_up() -> None:
    stats = Stats(tokens=6, target_forwards=4, prefill_forwards=1, drafted=10, accepted=3, seconds=2.0)
    stats.prefill_seconds, stats.drafting_seconds, stats.verifying_seconds = 0.2, 0.3, 1.0
    stats.methods = {"plain": 1, "x": 2}
    for offered, kept in ((4, 2), (4, 1), (2, 0)):
        stats.book_round(offered, kept)
    rows = [
        Row("base", [[4.0, 4.0]], [[1, 2, 3, 4, 5, 6], [1] * 6]),
        Row("ours", [[2.0, 2.0]], [[1, 2, 3, 4, 5, 6], [1] * 6], [stats.as_dict(), stats.as_dict()]),
    ]
    base, ours = summary(rows, ["a", "b"], {"ours": [0.5, 0.1]})
    assert base["ratio"] == [1.0, 1.0, 1.0]
    assert ours["ratio"][0] == 2.0
    assert ours["looping"] == 1
    assert ours["by_kind"]["b"][0] == 2.0
    assert ours["equal"] == 2
    assert (ours["margin_median"], ours["margin_largest"]) == (0.3, 0.5)
    assert ours["tokens_per_forward"] == 6 / 4
    assert ours["acceptance"] == 0.3
    assert ours["acceptance_by_position"] == [round(2 / 3, 3), round(1 / 3, 3), 0, 0]
    assert ours["methods"] == {"x": 4, "plain": 2}
    parts = ours["milliseconds_per_token"]
    assert sum(parts.values()) == pytest.approx(2000 / 6, rel=0.01)
