"""A layer's attention against PyTorch's own, and its rotary positions against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segue.models.heads.layer import Attention, Rows, behind, rotated


@pytest.fixture(params=["ours", "as others have it"])
def attention(request: pytest.FixtureRequest) -> Attention:
    torch.manual_seed(0)
    if request.param == "ours":
        return Attention(10, 3).requires_grad_(False)
    return Attention(10, 6, groups=3, size=4, norm=False, bias=True, base=50.0).requires_grad_(False)


def test_rotation_keeps_products_of_equal_distances() -> None:
    one, other = torch.randn(1, 8), torch.randn(1, 8)

    def product(i: int, j: int) -> float:
        return float((rotated(one, range(i, i + 1)) * rotated(other, range(j, j + 1))).sum())

    assert product(3, 1) == pytest.approx(product(13, 11), abs=1e-5)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-3)
    assert torch.equal(rotated(one, range(1)), one)


def test_a_pair_turns_by_its_position() -> None:
    (row,) = rotated(torch.tensor([[1.0, 0.0]]), range(2, 3))
    assert row.tolist() == pytest.approx([math.cos(2), math.sin(2)])
    (row,) = rotated(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), range(2, 3), 16.0)  # the second of two pairs: a fourth
    assert row.tolist() == pytest.approx([0.0, math.cos(0.5), 0.0, math.sin(0.5)])


def test_attention_is_pytorchs(attention: Attention) -> None:
    states, span, places = torch.randn(2, 6, 10), range(6), torch.arange(6)
    keys, values = attention.rows(states, span)
    assert keys.shape == (2, 3, 6, 4)  # a third of ten, made even
    mask = places[:, None] >= places
    queries = rotated(attention._split(attention.query(attention.norm(states))), span, attention.base)
    found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    expected = states + attention.out(found.transpose(1, 2).flatten(-2))
    assert torch.allclose(attention(states, span, (keys, values), mask), expected, atol=1e-6)


def test_chains_are_rows_that_only_their_own_query_sees(attention: Attention) -> None:
    """Two branches of one node behind a context of four, node by node as three plain sequences."""
    context, root, left, right = torch.randn(4, 10), *torch.randn(3, 1, 10)
    shared = attention.rows(context, range(4))

    def plain(*nodes: torch.Tensor) -> torch.Tensor:
        states = torch.cat([context, *nodes])
        places = torch.arange(len(states))
        span = range(len(states))
        return attention(states, span, attention.rows(states, span), places[:, None] >= places)[-1]

    at = range(4, 5)
    chain: Rows = behind(None, attention.rows(root, at))
    assert torch.allclose(attention(root, at, shared, chain=chain)[0], plain(root), atol=1e-6)
    both, at = torch.cat([left, right]), range(5, 6)
    chain = behind(
        (chain[0].index_select(-3, torch.tensor([0, 0])), chain[1].index_select(-3, torch.tensor([0, 0]))),
        attention.rows(both, at),
    )
    found = attention(both, at, shared, chain=chain)
    assert torch.allclose(found[0], plain(root, left), atol=1e-6)
    assert torch.allclose(found[1], plain(root, right), atol=1e-6)
