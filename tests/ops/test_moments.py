"""Exponential tilting against scipy on an enumerable model: DAEMON's theorem, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from scipy.special import logsumexp

from segue.choose.parts.energy import recent, repeated
from segue.data import Settings
from segue.laws.oracle import TableOracle
from segue.models.toy import ToyLM
from segue.ops.moments import tilt

SETTINGS = Settings(max_tokens=5, temperature=1.0)


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """All 1024 texts of 5 tokens of 4: the model's p, metrics, and a human distribution that is another model's."""
    model, other = ToyLM(4, 2, 0), ToyLM(4, 2, 1)
    other.table = 0.75 * model.table + 0.25 * other.table
    law, human = (TableOracle(lm).law([0], SETTINGS) for lm in (model, other))
    values = np.array([[repeated(t, 2), recent(t, 3), -np.log(law[t]) / 5] for t in law])
    p, h = np.array(list(law.values())), np.array([human[t] for t in law])
    return {"values": values, "p": p, "human": h, "targets": h @ values}


def exact(world: dict[str, np.ndarray]) -> np.ndarray:
    """mu by scipy on the exact sum."""

    def dual(mu: np.ndarray) -> float:
        return float(logsumexp(-world["values"] @ mu, b=world["p"]) + mu @ world["targets"])

    return optimize.minimize(dual, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x


def test_the_tilt_is_scipys_and_meets_the_means(world: dict[str, np.ndarray]) -> None:
    mu, mass = tilt(world["values"], world["targets"], world["p"])
    assert mu == pytest.approx(exact(world), abs=1e-4)
    assert mass @ world["values"] == pytest.approx(world["targets"], abs=1e-9)
    tilted = world["p"] * np.exp(-world["values"] @ mu)
    assert mass == pytest.approx(tilted / tilted.sum(), abs=1e-12)


def test_samples_find_the_same_weights(world: dict[str, np.ndarray]) -> None:
    chance = np.random.default_rng(0)
    truth, errors = exact(world), []
    for n in (300, 30_000):
        found = [tilt(world["values"][chance.choice(1024, n, p=world["p"])], world["targets"], ridge=1e-6)[0]
                 for _ in range(5)]  # fmt: skip
        errors.append(np.mean([np.abs(mu - truth).max() for mu in found]))
    assert errors[1] < errors[0] / 4  # as the square root of 100, with room
    tilted = world["p"] * np.exp(-world["values"] @ found[0])
    assert tilted @ world["values"] / tilted.sum() == pytest.approx(world["targets"], abs=0.02)


def test_the_gain_in_cross_entropy_is_the_divergence_from_the_model(world: dict[str, np.ndarray]) -> None:
    """CE(human, p) - CE(human, p_mu) = KL(p_mu || p) >= 0: human text never becomes less likely."""
    _, mass = tilt(world["values"], world["targets"], world["p"])
    gain = float(world["human"] @ (np.log(mass) - np.log(world["p"])))
    divergence = float(mass @ (np.log(mass) - np.log(world["p"])))
    assert gain == pytest.approx(divergence, abs=1e-9)
    assert gain > 0.01


def test_means_out_of_reach_are_refused_unless_held_back() -> None:
    values = np.array([[0.0], [1.0], [0.5]])
    with pytest.raises(ValueError, match=r"no weighting of the 3 draws has the means \[2.0\]"):
        tilt(values, np.array([2.0]))
    mu, mass = tilt(values, np.array([2.0]), ridge=0.1)
    assert mu[0] < 0
    assert mass @ values == pytest.approx(2.0 + 0.1 * mu[0], abs=1e-8)


def test_contexts_are_tilted_each_within_its_own() -> None:
    """Two prompts with draws of their own, against scipy on the sum of their duals."""
    chance = np.random.default_rng(3)
    values, groups = chance.normal(size=(60, 2)), np.repeat([0, 1, 2], [10, 20, 30])
    values += groups[:, None]  # most of the spread lies between contexts, where nothing can be moved
    targets = values.mean(0) + 0.3

    def dual(mu: np.ndarray) -> float:
        parts = [logsumexp(-values[groups == g] @ mu) - np.log((groups == g).sum()) for g in range(3)]
        return float(np.mean(parts) + mu @ targets)

    mu, mass = tilt(values, targets, groups=groups)
    assert mu == pytest.approx(optimize.minimize(dual, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x, abs=1e-5)
    assert [mass[groups == g].sum() for g in range(3)] == pytest.approx([1 / 3] * 3)
    assert mass @ values == pytest.approx(targets, abs=1e-8)
