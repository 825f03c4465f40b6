"""Bregman decoding: its target is in the laws, its mathematics in tests/ops; here how it meets settings and fields."""

from __future__ import annotations

import pytest
import torch

import segue
from segue.api import Model
from segue.choose.sample.bregman_topk import BregmanTopk
from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import TableOracle
from segue.laws.targets.bregman import hold
from segue.laws.worlds import toy_world
from segue.ops import bregman


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def test_a_fixed_size_with_alpha_1_is_sampling_with_top_k() -> None:
    world = toy_world(4)
    for k in (1, 2, 3):
        found = distribution(world.lm, BregmanTopk(alpha=1.0, k=k), [0, 1], Settings(temperature=1.0, max_tokens=3))
        law = TableOracle(world.lm).law([0, 1], Settings(temperature=1.0, top_k=k, max_tokens=3))
        assert total_variation(found.p, law) < 1e-12


def test_it_acts_behind_the_settings() -> None:
    """Temperature first, then what a kept token costs."""
    world = toy_world(4)
    method = BregmanTopk(alpha=2.0, price=0.02)
    found = distribution(world.lm, method, [0, 1], Settings(temperature=0.5, top_p=0.9, max_tokens=1))
    law = TableOracle(world.lm).law([0, 1], Settings(temperature=0.5, top_p=0.9, max_tokens=1))
    p = torch.tensor([[law.get((t,), 0.0) for t in range(4)]])
    q, _ = bregman.truncate(p, 2.0, 0.02)
    assert [found.p.get((t,), 0.0) for t in range(4)] == pytest.approx(q[0].tolist(), abs=1e-6)


def test_a_sampled_batch_equals_one_by_one(model: Model) -> None:
    prompts = ["Once upon a time", "The little dog", "A"]
    options = {"method": BregmanTopk(), "temperature": 1.0, "seed": 3, "max_tokens": 12}
    together = model.generate(prompts, **options)
    alone = [model.generate(prompt, **options) for prompt in prompts]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    plain = model.generate(prompts, method="plain", temperature=1.0, seed=3, max_tokens=12)
    assert [a.tokens for a in together] != [a.tokens for a in plain]
    assert all(a.stats.target_forwards == len(a.tokens) for a in together)


def test_samples_of_one_prompt_share_its_reading(model: Model) -> None:
    answers = model.generate("Once upon a time", method="bregman_topk", n=3, temperature=1.0, seed=1, max_tokens=6)
    assert len({tuple(a.tokens) for a in answers}) > 1
    assert all(a.stats.prefill_forwards == 1 for a in answers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 is not allowed"),
        ({"alpha": 1.0, "dual": True}, "alpha=1.0 is not allowed with dual=True"),
        ({"price": -1.0}, "price=-1.0 is not allowed"),
        ({"price": float("inf")}, "price=inf is not allowed"),
        ({"k": -1}, "k=-1 is not allowed"),
        ({"k_max": -2}, "k_max=-2 is not allowed"),
    ],
)
def test_bad_fields_name_the_value_and_the_way_out(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segue.method("bregman_topk", **fields)


def test_one_token_too_many_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    best = bregman.best_size
    monkeypatch.setattr(bregman, "best_size", lambda p, most, *rest: (best(p, most, *rest) + 1).minimum(most))
    with pytest.raises(LawBroken, match="total variation"):
        hold(BregmanTopk(), toy_world(3))


def test_the_wrong_shares_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proportional shares, whatever alpha."""
    share = bregman.renormalise
    monkeypatch.setattr(bregman, "renormalise", lambda p, sizes, alpha, dual=False: share(p, sizes, 1.0))
    with pytest.raises(LawBroken, match="total variation"):
        hold(BregmanTopk(), toy_world(3))
