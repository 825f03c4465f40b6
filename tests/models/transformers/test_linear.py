"""Products made after loading give the ordinary one, and quantized ones stay within what their bits explain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from segue.models.transformers import linear
from segue.models.transformers.linear import DenseProduct, PackedProduct, dense_or_packed, maker, swap_linears
from segue.models.transformers.quantized import (
    GROUP,
    Int4Product,
    Int8Product,
    Int8WeightProduct,
    int8_activations,
    quantize_int4,
    quantize_int8,
)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# oneDNN's own word on what the processor can do.
PACKS = {torch.float32: True, torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
def test_product(dtype: torch.dtype, bias: bool, rows: int) -> None:
    weight, x = matrix(80, 48).to(dtype), matrix(rows, 48, 1)[None].to(dtype)
    extra = matrix(1, 80, 2)[0].to(dtype) if bias else None
    expected = nn.functional.linear(x, weight, extra)
    for product in [DenseProduct] + [PackedProduct] * PACKS[dtype]:
        torch.testing.assert_close(product(weight, extra)(x), expected, rtol=1e-2, atol=2e-2 if rows else 0)


def test_a_weight_is_packed_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(dense_or_packed(matrix(8, 8), None), DenseProduct)
    assert isinstance(dense_or_packed(matrix(1024, 1024), None), PackedProduct)
    assert isinstance(dense_or_packed(matrix(8, 8).bfloat16(), None), PackedProduct) == PACKS[torch.bfloat16]
    assert isinstance(dense_or_packed(matrix(8, 8).half(), None), DenseProduct)
    # The op is private to PyTorch: where it gives something else, nothing is packed.
    monkeypatch.setattr(linear, "_packing", {})
    monkeypatch.setattr(PackedProduct, "__call__", lambda self, x: x.new_zeros(*x.shape[:-1], 48))
    assert isinstance(dense_or_packed(matrix(8, 8).bfloat16(), None), DenseProduct)
    assert isinstance(dense_or_packed(matrix(1024, 1024), None), DenseProduct)


def test_every_plain_layer_is_swapped_and_nothing_else() -> None:
    class Own(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(8, 6), nn.Sequential(Conv1D(5, 6)), Own(5, 5), nn.LayerNorm(5))
    x = matrix(3, 8)
    before = net(x)
    assert swap_linears(net, dense_or_packed) == 2
    torch.testing.assert_close(net(x), before)
    assert type(net[2]) is Own


@pytest.mark.parametrize("product", [Int8WeightProduct, Int8Product, Int4Product])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_quantized_products_are_close_and_rows_are_alone(product: Any, dtype: torch.dtype, bias: bool) -> None:
    if product is Int8Product and not int8_activations():
        pytest.skip("this processor saturates")
    weight, x = matrix(96, 4 * GROUP).to(dtype), matrix(9, 4 * GROUP, 1)
    x[4] *= 1000  # one scale for all rows would drown the others
    x[5] = 0
    extra = matrix(1, 96, 2)[0].to(dtype) if bias else None
    made = product(weight, extra)
    rows = made(x[None].to(dtype))[0]
    assert rows.dtype == dtype
    expected = nn.functional.linear(x, weight.float(), None if extra is None else extra.float())
    error = (rows.float() - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-9)
    assert float(error[torch.arange(9) != 5].max()) < (0.12 if product is Int4Product else 0.015)
    torch.testing.assert_close(rows[5].float(), expected[5], rtol=1e-2, atol=1e-2)
    for row in range(9):  # bit for bit, whatever stands beside
        assert torch.equal(made(x[None, row : row + 1].to(dtype))[0, 0], rows[row])


def test_the_size_decides_which_int8_product() -> None:
    assert int8_activations() or not torch.cpu._is_vnni_supported()
    make = maker("int8")
    assert isinstance(make(matrix(64, 64), None), Int8WeightProduct)
    assert isinstance(make(matrix(1024, 1024), None), Int8Product if int8_activations() else Int8WeightProduct)


def test_where_int8_by_int8_saturates_only_the_weights_are_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Int8Product, "__call__", lambda self, x: x.new_ones(*x.shape[:-1], 64))
    int8_activations.cache_clear()
    try:
        assert isinstance(maker("int8")(matrix(1024, 1024), None), Int8WeightProduct)
    finally:
        int8_activations.cache_clear()


def test_values_are_the_nearest_of_their_grid() -> None:
    weight = matrix(5, 2 * GROUP)
    values, scale = quantize_int8(weight)
    assert float((values * scale[:, None] - weight).abs().max()) <= float(scale.max()) / 2 * 1.0001
    four, scales = quantize_int4(weight)
    assert int(four.min()) >= 0
    assert int(four.max()) <= 15
    steps = scales.repeat_interleave(GROUP, 1)
    off = ((four - 8) * steps - weight).abs() / steps.abs()
    # Only what lies at the far end from the largest is cut off, by less than one step.
    assert float((off <= 0.51).float().mean()) > 0.97
    assert float(off.max()) <= 1.05


def test_small_outputs_and_odd_shapes_keep_their_precision() -> None:
    assert isinstance(maker("int8")(matrix(4, 64), None), DenseProduct)
    assert not isinstance(maker("int4")(matrix(64, 50).bfloat16(), None), Int4Product)


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="quantize='int3' is unknown: choose from int8, int4"):
        maker("int3")
    monkeypatch.setattr(Int8WeightProduct, "__call__", lambda self, x: x.new_ones(*x.shape[:-1], 64))
    with pytest.raises(ValueError, match="does not work with this PyTorch and processor"):
        maker("int8")
