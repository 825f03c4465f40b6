from __future__ import annotations

import random

import pytest
from scipy import stats

from segue.ops.confidence import fit_beta, log_density, threshold


@pytest.mark.parametrize(("a", "b"), [(8.0, 2.0), (2.0, 5.0), (1.5, 1.5)])
def test_a_fit_finds_the_parameters(a: float, b: float) -> None:
    values = stats.beta(a, b).rvs(20_000, random_state=1).tolist()
    fitted = fit_beta(values)
    assert fitted is not None
    assert fitted == pytest.approx((a, b), rel=0.05)
    reference = stats.beta.fit(values, floc=0, fscale=1)
    assert fitted == pytest.approx(reference[:2], rel=0.05)


def test_the_density_is_scipys() -> None:
    for value in (0.01, 0.4, 0.93):
        assert log_density(value, (3.0, 1.2)) == pytest.approx(stats.beta.logpdf(value, 3.0, 1.2))


def test_values_without_spread_have_no_fit() -> None:
    assert fit_beta([0.5]) is None
    assert fit_beta([0.5, 0.5]) is None


def test_the_threshold_parts_right_from_wrong() -> None:
    draw = random.Random(2)
    right = [draw.betavariate(9, 2) for _ in range(400)]
    wrong = [draw.betavariate(2, 6) for _ in range(400)]
    labels = [True] * 400 + [False] * 400
    bar = threshold(right + wrong, labels, 0.5)
    assert bar is not None
    good, bad = (stats.beta(*(fit_beta(part) or ())) for part in (right, wrong))
    points = [0.3 + 0.6 * i / 9 for i in range(10)]
    expected = next(p for p in points if good.pdf(p) > bad.pdf(p))
    assert bar == pytest.approx(expected)
    assert threshold(right + wrong, labels, 0.99) > bar  # type: ignore[operator]
    assert threshold(right, [True] * 400, 0.5) is None
