"""Bregman truncation against every support there is, published closed forms, scipy's optimiser and transformers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper

from segue.laws.targets.bregman import divergence, listed
from segue.ops.bregman import _solved, best_size, dropped, held, renormalise, truncate

PRIMAL = [(a, False) for a in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)]
DUAL = [(a, True) for a in (1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0)]
each_form = pytest.mark.parametrize(("alpha", "dual"), PRIMAL + DUAL)


def rows(count: int, size: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    """Sorted probabilities (count, size)."""
    generator = torch.Generator().manual_seed(seed)
    p = (spread * torch.randn(count, size, generator=generator, dtype=torch.float64)).softmax(-1)
    return p.sort(-1, descending=True).values


@each_form
def test_the_best_of_all_supports_is_found_and_costs_are_convex(alpha: float, dual: bool) -> None:
    marks = np.array([m for m in itertools.product((True, False), repeat=7) if any(m)])
    for p in rows(3, 7).tolist():
        free, q = listed(np.array(p), marks, alpha, 0.0, dual)
        sizes = marks.sum(-1)
        cheapest = np.array([free[sizes == k].min() for k in range(1, 8)])
        # The k largest are the best support of their size, and the cost is discretely convex in it.
        for k in range(1, 8):
            assert marks[sizes == k][free[sizes == k].argmin(), :k].all()
        assert (np.diff(cheapest, 2) >= -1e-12).all()
        for price in (0.0, 0.003, 0.03, 0.3):
            best = int((free + price * sizes).argmin())
            found, kept = truncate(torch.tensor([p], dtype=torch.float64), alpha, price, dual=dual)
            assert int(kept) == sizes[best]
            assert np.abs(found[0].numpy() - q[best]).max() < 1e-11


@each_form
def test_costs_are_those_of_the_definition(alpha: float, dual: bool) -> None:
    p = rows(4, 9, seed=1)
    for k in range(1, 10):
        size = torch.full((4,), k)
        q = renormalise(p, size, alpha, dual)
        ours = held(p, size, alpha, dual) + dropped(p[:, k:], alpha, dual).sum(-1)
        x, y = (p, q) if dual else (q, p)
        assert np.allclose(ours.numpy(), divergence(x.numpy(), y.numpy(), alpha), atol=1e-13)


@pytest.mark.parametrize(
    ("alpha", "dual"), [(0.5, False), (1.0, False), (1.5, False), (3.0, False), (1.5, True), (2.5, True)]
)
def test_scipy_finds_no_better_distribution(alpha: float, dual: bool) -> None:
    p = rows(1, 6, seed=2)
    for k in (2, 4):
        kept = p[0, :k].numpy()

        def cost(q: np.ndarray) -> float:
            return float(divergence(kept, q, alpha) if dual else divergence(q, kept, alpha))  # noqa: B023

        start = np.full(k, 1 / k)
        sum_is_one = {"type": "eq", "fun": lambda q: q.sum() - 1}
        best = minimize(
            cost,
            start,
            method="SLSQP",
            bounds=[(1e-9, 1)] * k,
            constraints=[sum_is_one],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        q = renormalise(p[:, :k], torch.tensor([k]), alpha, dual)[0].numpy()
        assert best.success
        assert np.abs(q - best.x).max() < 1e-5
        assert cost(q) <= best.fun + 1e-12


def test_closed_forms_equal_the_general_solution() -> None:
    p = rows(5, 8, seed=3)[:, :4]
    kept, size = torch.ones_like(p, dtype=torch.bool), torch.full((5,), 4)
    for alpha, dual in ((1.5, False), (2.0, False), (2.0, True)):
        assert torch.allclose(renormalise(p, size, alpha, dual), _solved(p, kept, alpha, dual), atol=1e-12)
    for alpha in (1.5, 3.0):  # the dual's closed forms against the ones beside them
        near = _solved(p, kept, alpha + 1e-9, True)
        assert torch.allclose(renormalise(p, size, alpha, True), near, atol=1e-8)
    missing, total = 1 - p.sum(-1, keepdim=True), p.sqrt().sum(-1, keepdim=True)
    nu = (-total + (total**2 + 4 * missing).sqrt()) / 4
    assert torch.allclose(renormalise(p, size, 1.5), (p.sqrt() + nu) ** 2)


def test_alpha_1_with_a_fixed_size_is_top_k_of_transformers() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for k in (1, 5, 40):
        theirs = TopKLogitsWarper(k)(torch.empty(6, 0, dtype=torch.long), logits).softmax(-1)
        q, sizes = truncate(logits.softmax(-1), 1.0, 0.0, k=k)
        assert sizes.tolist() == [k] * 6
        assert torch.allclose(q, theirs, atol=1e-15)


def test_the_rule_of_kullback_leibler() -> None:
    for p in rows(20, 30, seed=5):
        for price in (0.01, 0.1, 0.5):
            k = 1
            while k < 30 and p[k] > math.expm1(price) * p[:k].sum():
                k += 1
            assert int(truncate(p[None], 1.0, price)[1]) == k


def test_a_large_alpha_fills_up_like_water() -> None:
    p = rows(1, 12, seed=6)
    q = renormalise(p[:, :5], torch.tensor([5]), 40.0)[0].numpy()
    low, high = 0.0, 1.0
    for _ in range(60):
        level = (low + high) / 2
        low, high = (low, level) if np.maximum(p[0, :5].numpy(), level).sum() > 1 else (level, high)
    assert np.abs(q - np.maximum(p[0, :5].numpy(), low)).max() < 0.02


@each_form
def test_a_price_of_0_changes_nothing_and_a_large_one_is_greedy(alpha: float, dual: bool) -> None:
    p = rows(3, 50, seed=7, spread=6.0)[:, torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    q, sizes = truncate(p, alpha, 0.0, dual=dual)
    assert sizes.tolist() == [50] * 3
    assert torch.allclose(q, p, atol=1e-16, rtol=1e-14)
    q, sizes = truncate(p, alpha, 50.0, dual=dual)
    assert sizes.tolist() == [1] * 3
    assert torch.equal(q, torch.nn.functional.one_hot(p.argmax(-1), 50).double())


@each_form
def test_what_has_no_probability_stays_out(alpha: float, dual: bool) -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2], [1.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for options in ({"price": 1e-9}, {"price": 0.0}, {"price": 0.0, "k": 4}):
        q, sizes = truncate(p, alpha, dual=dual, **options)
        assert sizes.tolist() == [3, 1]
        assert torch.allclose(q, p)


@each_form
def test_rows_of_a_batch_do_not_disturb_each_other(alpha: float, dual: bool) -> None:
    p = torch.cat([rows(3, 60, seed=8, spread=s) for s in (0.5, 2.0, 8.0)])
    together, sizes = truncate(p, alpha, 0.004, dual=dual)
    assert len(set(sizes.tolist())) > 1
    for i in range(len(p)):
        alone, size = truncate(p[i : i + 1], alpha, 0.004, dual=dual)
        assert int(size) == int(sizes[i])
        assert torch.allclose(alone[0], together[i], atol=1e-13)


def test_the_search_looks_at_about_as_many_tokens_as_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    p = rows(1, 20_000, seed=9, spread=3.0)
    widths = []
    original = renormalise

    def counted(p: Tensor, *args: object) -> Tensor:
        widths.append(p.shape[-1])
        return original(p, *args)

    monkeypatch.setattr("segue.ops.bregman.renormalise", counted)
    size = int(best_size(p, torch.tensor([20_000]), 1.5, 0.001))
    assert 1 < size < 200
    assert max(widths) <= 2 * size + 1
    assert len(widths) <= 4 * math.log2(size) + 4


def test_a_cap_on_the_size() -> None:
    p = rows(2, 30, seed=10, spread=1.0)
    free = truncate(p, 1.5, 0.0005)[1]
    assert bool((free > 4).all())
    q, sizes = truncate(p, 1.5, 0.0005, k_max=4)
    assert sizes.tolist() == [4, 4]
    assert torch.allclose(q, truncate(p, 1.5, 0.0, k=4)[0])
