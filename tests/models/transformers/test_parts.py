"""Attention in parts, stacked or not, against softmax written out in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from segue.models.transformers.parts import Form, attended, join, part, scored_part, sunk

HEADS = ((4, 2), (4, 4), (4, 1))
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
CASES = list(itertools.product(HEADS, (1, 3), ("none", "causal", "mask", "stacked mask"), TOLERANCE))


def written_out(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    repeat = q.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(repeat, 1) for x in (keys, values))
    logits = torch.einsum("bhnd,bhrd->bhnr", q.double(), keys) * scale + mask
    return torch.softmax(logits, -1) @ values, logits.logsumexp(-1)


@pytest.mark.parametrize(("heads", "n", "how", "dtype"), CASES, ids=str)
def test_parts_are_softmax(heads: tuple[int, int], n: int, how: str, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(3)
    rows = n if how == "causal" else 11
    q = torch.randn(2, heads[0], n, 8, generator=source).to(dtype)
    keys, values = (torch.randn(2, heads[1], rows, 8, generator=source).to(dtype) for _ in range(2))
    form = Form(0.3)
    full = torch.zeros(n, rows)
    if how == "causal":
        full.masked_fill_(torch.ones(n, n).triu(1) > 0, float("-inf"))
    elif how != "none":
        full.masked_fill_(torch.rand(n, rows, generator=source) < 0.4, float("-inf"))
        full[:, 0] = 0
    mask = None if how in ("none", "causal") else full.to(dtype)
    if how == "stacked mask" and mask is not None and n > 1:
        mask = mask.repeat(heads[0] // heads[1], 1)[None, None].expand(2, 1, -1, -1)
    out, sums = written_out(q, keys, values, full.double(), form.scale)
    causal = how == "causal" and n > 1
    if how != "none" or n == 1:
        torch.testing.assert_close(
            attended(q, keys, values, mask, form, causal).double(), out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
    found = part(q, keys, values, mask, form, causal)
    for one, expected in zip(found, (out, sums), strict=True):
        torch.testing.assert_close(one.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_two_parts_join_to_the_whole_and_a_sink_takes_its_share() -> None:
    source = torch.Generator().manual_seed(4)
    q = torch.randn(1, 4, 3, 8, generator=source)
    keys, values = (torch.randn(1, 2, 20, 8, generator=source) for _ in range(2))
    form = Form(0.4)
    blind = torch.zeros(3, 7)
    blind[1] = float("-inf")  # a row that sees nothing of a part
    mask = torch.cat((torch.zeros(3, 13), blind), 1)
    out, sums = written_out(q, keys, values, mask.double(), form.scale)
    one = part(q, keys[:, :, :13], values[:, :, :13], None, form)
    other = scored_part(q, keys[:, :, 13:], values[:, :, 13:], blind, form)
    joined, lse = join(one, other)
    torch.testing.assert_close(joined.double(), out, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lse.double(), sums, atol=1e-6, rtol=1e-6)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    share = 1 / (1 + torch.exp(sinks.double().view(1, -1, 1) - sums))
    torch.testing.assert_close(sunk(joined, lse, sinks).double(), out * share[..., None], atol=1e-6, rtol=1e-6)
