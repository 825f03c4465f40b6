"""Packed linears give the ordinary product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segue.models.transformers import linear
from segue.models.transformers.linear import PackedLinear, pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
def test_product(dtype: torch.dtype, bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias).to(dtype)
    x = torch.randn(1, rows, 48, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(layer)(x), layer(x), rtol=1e-2, atol=2e-2 if rows else 0)


def test_only_layers_that_gain_are_replaced() -> None:
    net = nn.Sequential(
        nn.Linear(8, 8), nn.Linear(1024, 1024), nn.Linear(8, 8).to(torch.bfloat16), nn.Linear(8, 8).half()
    )
    assert pack(net) == 2
    assert [isinstance(layer, PackedLinear) for layer in net] == [False, True, True, False]


def test_nothing_is_replaced_where_the_op_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.PackedLinear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features))
    net = nn.Sequential(nn.Linear(16, 16).to(torch.bfloat16))
    assert pack(net) == 0
    assert isinstance(net[0], nn.Linear)
