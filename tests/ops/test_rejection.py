"""Rejection with weights: every branch of the walks, against sums over the vocabulary."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segue.laws.enumerate import ScriptedChance, walk
from segue.ops import rejection
from segue.ops.chance import Generator
from tests.mutation import mutate

ROWS = [[0.1, 0.25, 0.05, 0.6], [0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]
SUBSETS = [set(s) for n in range(5) for s in itertools.combinations(range(4), n)]
LONGEST = 20  # repetitions beyond are left out of walks


def expectations(rule: Callable[..., Any], p: list[float], allowed: set[int], patience: int = 0) -> list[list[float]]:
    """For every token: its probability, and the expectation of its weight."""
    row = torch.tensor(p, dtype=torch.float64)
    mask = torch.tensor([token in allowed for token in range(len(p))])
    found: dict[int | None, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for chance, (token, weight) in walk(
        lambda script: rule(row, allowed.__contains__, script, mask=lambda: mask, patience=patience), 200_000
    ):
        found[token][0] += chance
        found[token][1] += chance * weight
    assert found.pop(None, [0.0, 0.0])[1] == 0
    return [found[token] for token in range(len(p))]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions as one choice among their numbers, so that they can be walked."""

    def repeats(r: float, chance: ScriptedChance) -> int:
        if r < 1e-12:
            return 0
        return chance.index(torch.tensor([(1 - r) * r**k for k in range(LONGEST)], dtype=torch.float64))

    monkeypatch.setattr(rejection, "repeats", repeats)


def assert_unbiased(
    rule: Callable[..., Any], patience: int, tolerance: float, rows: list[list[float]] = ROWS, least: float = 0.0
) -> None:
    for p, allowed in [(p, allowed) for p in rows for allowed in SUBSETS if max(allowed, default=0) < len(p)]:
        mass = sum(p[token] for token in allowed)
        if mass < least:
            continue
        for token, (share, weight) in enumerate(expectations(rule, p, allowed, patience)):
            right = p[token] if token in allowed else 0.0
            assert weight == pytest.approx(right, abs=tolerance), (p, allowed, token)
            assert share == pytest.approx(right / mass if mass else 0.0, abs=1e-9)


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_the_recursive_estimator_is_unbiased(patience: int) -> None:
    assert_unbiased(rejection.recursive, patience, 1e-12)


@pytest.mark.parametrize("patience", [0, 1])
def test_the_geometric_estimator_is_unbiased(listed: None, patience: int) -> None:
    # Where much is refused there are more repetitions than are listed.
    assert_unbiased(rejection.geometric, patience, 1e-6, [[0.55, 0.35, 0.1], [0.8, 0.0, 0.2]], least=0.55)


def test_more_acceptances_vary_less() -> None:
    p, allowed, spread = torch.tensor(ROWS[1]), {1, 3}, []
    for accepts in (2, 4, 16):
        chance = Generator(accepts)
        weights = [rejection.geometric(p, allowed.__contains__, chance, accepts)[1] for _ in range(1500)]
        mean = sum(weights) / len(weights)
        variance = sum((w - mean) ** 2 for w in weights) / len(weights)
        assert abs(mean - 0.4) < 5 * math.sqrt(variance / len(weights))
        spread.append(variance)
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]


def test_without_an_estimate_only_the_law_is_right() -> None:
    for p, allowed in itertools.product(ROWS, SUBSETS):
        mass = sum(p[token] for token in allowed)
        for token, (share, weight) in enumerate(expectations(rejection.first, p, allowed)):
            assert weight == share == pytest.approx(p[token] / mass if mass and token in allowed else 0.0)


@pytest.mark.parametrize("r", [0.0, 0.2, 0.7, 0.97])
def test_repetitions_are_geometric(r: float) -> None:
    law: dict[int, float] = defaultdict(float)
    for chance, count in walk(lambda script: rejection.repeats(r, script)):
        law[count] += chance
    assert sum(law.values()) == pytest.approx(1)
    for count in range(200):
        assert law.get(count, 0.0) == pytest.approx((1 - r) * r**count, abs=1e-13)


def test_repetitions_end_where_nearly_everything_was_refused() -> None:
    assert rejection.repeats(1.0, Generator(0)) > 1 << 50


def test_few_checks_are_made() -> None:
    """The card's own simulation: five tokens, 0.40 of which pass, and 2.83 checks on average."""
    p = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
    allowed, checks = {1, 3}, []
    chance = Generator(0)
    for _ in range(2000):
        asked: list[int] = []
        rejection.recursive(p, lambda token, asked=asked: bool(asked.append(token)) or token in allowed, chance)
        assert len(asked) == len(set(asked))  # nothing is asked twice
        checks.append(len(asked))
    assert 2.5 < sum(checks) / len(checks) < 3.2


def test_patience_bounds_the_walk() -> None:
    p = torch.full((5000,), 1 / 5000)
    mask = torch.zeros(5000, dtype=torch.bool)
    mask[4321] = True
    for rule in (rejection.first, rejection.recursive, rejection.geometric):
        asked: list[int] = []
        token, weight = rule(
            p,
            lambda t, asked=asked: bool(asked.append(t)) or bool(mask[t]),  # type: ignore[misc]
            Generator(1),
            mask=lambda: mask,
            patience=8,
        )
        assert token == 4321 or len(asked) > 8
        assert len(asked) <= 8
        assert token == 4321
        assert rule is rejection.geometric or weight == pytest.approx(1.0 if rule is rejection.first else 1 / 5000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return token, before", "return token, 1.0"),
        ("return token, share", "return token, before"),
        ("left.mass == 0 or left.passes(chance.index(left.p))", "left.mass == 0 or left.passes(token)"),
        ("return token, share", "return token, 0.0"),
    ],
)
def test_a_wrong_rule_is_biased(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, rejection, "recursive", old, new)
    with pytest.raises(AssertionError):
        assert_unbiased(rejection.recursive, 0, 1e-6)
