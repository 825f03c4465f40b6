"""Linear layers at the machine's speed: products made from a weight once, after loading.

PyTorch's own linear is handed the plain weight on every call. On a CPU a weight that oneDNN packed once gives the same
arithmetic up to a third of the time sooner (in float32 the last bits may differ, since sums are taken in another
order), and quantized weights read a quarter of the bytes. Which form pays depends on precision and size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from segue.models.transformers.quantized import QUANTIZED, Product

Make = Callable[[Tensor, Tensor | None], Product]  # from weight (out, in) and bias (out,)
ROWS = 8  # the row count that the packed layout is made for: a step or a small tree
SMALLEST_FLOAT32 = 2**18  # weights below this are faster unpacked in float32 (measured, Zen 4)


class DenseProduct:
    """PyTorch's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.weight_bytes = weight.numel() * weight.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class PackedProduct:
    """The same with a weight packed for oneDNN; the original weight is not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight_bytes = weight.numel() * weight.element_size()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self._bias = None if bias is None else bias.detach()
        self._product: Any = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._product(x, self._packed, self._bias, "none", [], "")
        return out


def maker(quantize: str | None = None) -> Make:
    """What makes the products of a network. The ops behind packed and quantized ones are private to PyTorch: each is
    tried once against the ordinary product, and ValueError says where a quantization cannot be had here."""
    if quantize is not None:
        if quantize not in QUANTIZED:
            raise ValueError(f"quantize={quantize!r} is unknown: choose from {', '.join(QUANTIZED)}")
        return QUANTIZED[quantize].maker(dense_or_packed)
    return dense_or_packed


def dense_or_packed(weight: Tensor, bias: Tensor | None) -> Product:
    """The faster of the two forms that change nothing."""
    if _gains(weight) and _can_pack(weight.dtype):
        return PackedProduct(weight, bias)
    return DenseProduct(weight, bias)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain product that may be remade: no subclass, which may do something else."""
    return type(module) is nn.Linear or type(module) is Conv1D


def weight_of(module: nn.Module) -> Tensor:
    """(out, in) weight of a plain product; Conv1D keeps it the other way round."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.detach().t().contiguous() if type(module) is Conv1D else weight.detach()


class LeanLinear(nn.Module):
    """A product as a layer of its own."""

    def __init__(self, linear: nn.Module, make: Make) -> None:
        super().__init__()
        self.product = make(weight_of(linear), linear.bias)  # type: ignore[arg-type]
        # T5's blocks look at the precision of a weight before they use it: this one has that and nothing else.
        self.weight = weight_of(linear).new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    @property
    def weight_bytes(self) -> int:
        return self.product.weight_bytes


def swap_linears(network: nn.Module, make: Make) -> int:
    """Replace every plain linear layer of `network`; returns how many."""
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if is_linear(child)
    ]
    for parent, name, linear in places:
        setattr(parent, name, LeanLinear(linear, make))
    return len(places)


def _gains(weight: Tensor) -> bool:
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.bfloat16 or (weight.dtype == torch.float32 and weight.numel() >= SMALLEST_FLOAT32)


_packing: dict[torch.dtype, bool] = {}


def _can_pack(dtype: torch.dtype) -> bool:
    """Compare a packed product with the ordinary one, once per precision, for one row and for several."""
    if dtype not in _packing:
        _packing[dtype] = _agrees(dtype)
    return _packing[dtype]


@torch.no_grad()
def _agrees(dtype: torch.dtype) -> bool:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    weight = torch.linspace(-1, 1, 48 * 80).sin().view(48, 80).to(dtype)
    try:
        packed = PackedProduct(weight, None)
        for rows in (1, 3, 17):
            x = torch.linspace(-1, 1, rows * 80).cos().view(1, rows, 80).to(dtype)
            torch.testing.assert_close(packed(x), nn.functional.linear(x, weight), rtol=1e-2, atol=1e-2)
    except (RuntimeError, NotImplementedError, AssertionError):
        return False
    return True
