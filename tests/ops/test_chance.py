from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from segue.ops.chance import Generator


def test_a_seed_means_the_same_and_the_global_state_means_nothing() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        source = Generator(7)
        draws.append([(source.index(p), source.keeps(0.3, 0.6)) for _ in range(50)])
    assert draws[0] == draws[1]
    other = Generator(8)
    assert draws[0] != [(other.index(p), other.keeps(0.3, 0.6)) for _ in range(50)]


def test_unseeded_sources_differ() -> None:
    p = torch.ones(1000)
    a, b = Generator(), Generator()
    assert [a.index(p) for _ in range(20)] != [b.index(p) for _ in range(20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_index_follows_p(dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 0.125, 0.0, 0.5, 0.375, 0.0], dtype=dtype)
    source = Generator(0)
    counts = torch.zeros(6)
    for _ in range(4000):
        counts[source.index(p)] += 1
    assert counts[p == 0].sum() == 0
    # With a fixed seed this is no gamble; a correct source fails such a test once in ten thousand seeds.
    assert chisquare(counts[p > 0], 4000 * p[p > 0].double()).pvalue > 1e-4


def test_index_needs_no_normalised_p() -> None:
    source = Generator(0)
    assert {source.index(torch.tensor([0.0, 3.0, 0.0])) for _ in range(20)} == {1}
    halves = [source.index(torch.tensor([20.0, 20.0])) for _ in range(400)]
    assert 150 < sum(halves) < 250


def test_keeps_with_probability_p_over_q() -> None:
    source = Generator(0)
    kept = sum(source.keeps(0.2, 0.5) for _ in range(4000))
    assert chisquare([kept, 4000 - kept], [1600, 2400]).pvalue > 1e-4
    assert all(source.keeps(0.5, 0.2) for _ in range(100))


def test_what_cannot_be_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Generator(0)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        monkeypatch.setattr(source, "_uniform", lambda u=uniform: u)
        assert not source.keeps(0.0, 0.5)
        assert not source.keeps(0.0, 0.0)
        # Rounding at the far end must not step onto a token of probability 0.
        assert source.index(torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0])) in (1, 2, 3)
