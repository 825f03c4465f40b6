"""Linear layers with quantized weights: int8, and int4 with a scale per group.

Small int8 weights are multiplied by bfloat16 activations in one operation; large ones by int8 activations, where the
processor can, which reads and computes less but takes four operations more. A row's result never depends on the rows
beside it: activations are scaled row by row, since one scale for a whole pack (PyTorch's own dynamic quantization)
would let the drafts beside a token change that token.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Product(Protocol):
    """A linear layer's product for inference: x (..., in) -> (..., out). No module: a call costs nothing besides."""

    weight_bytes: int

    def __call__(self, x: Tensor) -> Tensor: ...


Make = Callable[[Tensor, Tensor | None], Product]
LEVELS = 127  # of a symmetric int8
TINY = 1e-12  # scale of a row of zeros
LARGE = 2**19  # weights from which on int8 activations pay (measured, Zen 4, one and eight rows)
MANY = 64  # rows from which on they are no draft
INT8_ERROR = 0.02  # as `fault` measures it
GROUP = 32  # weights that share an int4 scale
NARROWEST = 32  # outputs: a router's few weigh little and decide much
ZERO_POINT = 8  # int4 values 0 .. 15 mean -8 .. 7


class Int8WeightProduct:
    """x (..., in) -> (..., out): weights int8 with a scale per output, activations bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._values, scale = quantize_int8(weight)
        self.weight_bytes = self._values.numel() + 2 * scale.numel()
        self.out_features = weight.shape[0]
        self._scale = scale.to(torch.bfloat16)
        self._bias = None if bias is None else bias.detach()
        self._product: Any = torch.ops.aten._weight_int8pack_mm.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) < MANY:
            flat = self._product(rows, self._values, self._scale)
        else:  # a prompt: the kernel takes row by row, and a whole matrix is sooner made wide again
            flat = torch.nn.functional.linear(rows, self._values.to(torch.bfloat16)) * self._scale
        out: Tensor = flat.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return out if self._bias is None else out + self._bias


class Int8Product:
    """x (..., in) -> (..., out): weights int8 with a scale per output, activations int8 with a scale per row."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        values, scale = quantize_int8(weight)
        self.weight_bytes = values.numel() + 4 * scale.numel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # quantized tensors will go; the check at load will tell
            packing = torch._make_per_channel_quantized_tensor(
                values, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
            )
        self._packed: Any = torch.ops.quantized.linear_prepack(packing, None)
        self._bias = None if bias is None else bias.detach().float()
        self._product: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float()
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        # Every row now spans [-1, 1], so that one scale for all is each row's own.
        out: Tensor = self._product(rows / largest, 1 / LEVELS, LEVELS, self._packed)
        out = out.mul_(largest) if self._bias is None else torch.addcmul(self._bias, out, largest)
        return out.to(x.dtype)


class Int4Product:
    """x (..., in) -> (..., out): weights int4 with a scale per GROUP inputs, activations bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        values, scale = quantize_int4(weight)
        self.weight_bytes = values.numel() // 2 + 4 * scale.numel()
        self.out_features = weight.shape[0]
        self._packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        groups = scale.t()  # (in / GROUP, out)
        self._scales = torch.stack([groups, torch.zeros_like(groups)], -1).to(torch.bfloat16).contiguous()
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        flat = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._packed, GROUP, self._scales)
        out: Tensor = flat.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return out if self._bias is None else out + self._bias


def int8_product(weight: Tensor, bias: Tensor | None) -> Product:
    """The faster of the two for a weight of this size, where the processor has both."""
    if weight.numel() < LARGE or not int8_activations():
        return Int8WeightProduct(weight, bias)
    return Int8Product(weight, bias)


@functools.cache
def int8_activations() -> bool:
    """Whether int8 can be multiplied by int8 here: processors without VNNI add two products in 16 bits, too few."""
    return fault(Int8Product, INT8_ERROR) is None


@torch.no_grad()
def fault(product: Make, error: float) -> str | None:
    """What is wrong with products of random and of extreme numbers; the ops behind them are private to PyTorch.

    `error`: the mean error of a product, relative, that its bits explain.
    """
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 2 * GROUP, generator=source)
    weight[0] = 1.0  # with a row of ones the largest sum there is
    try:
        made = product(weight, None)
        for rows in (1, 5):
            x = torch.randn(rows, 2 * GROUP, generator=source)
            x[0] = 1.0
            right = x @ weight.t()
            off = float((made(x[None])[0].float() - right).abs().mean() / right.abs().mean())
            if not off <= error:
                return f"it is off by {off:.1%}"
    except (RuntimeError, NotImplementedError, AttributeError) as reason:
        return str(reason).splitlines()[0]
    return None


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (out, in) and float32 scales (out,), symmetric."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp_min(TINY) / LEVELS
    return (weight / scale[:, None]).round().clamp_(-LEVELS, LEVELS).to(torch.int8), scale


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values 0 .. 15 as int32 (out, in) and scales (out, in / GROUP); the largest of a group is -8 or 8 scales."""
    grouped = weight.detach().float().view(weight.shape[0], -1, GROUP)
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))  # with its sign: it becomes -8 exactly
    scale = torch.where(extreme == 0, TINY, extreme / -ZERO_POINT).to(torch.bfloat16).float()
    values = (grouped / scale + ZERO_POINT).round().clamp_(0, 15)
    return values.to(torch.int32).view(weight.shape), scale[..., 0]


@dataclass(frozen=True)
class Kind:
    """A quantization: its product, and which weights it takes."""

    name: str
    product: Make
    fits: Callable[[Tensor], bool]
    error: float  # of its products, as `fault` measures it

    def maker(self, other: Make) -> Make:
        """Makes this product where a weight fits and `other` where not. ValueError where PyTorch cannot do it here."""
        if (reason := fault(self.product, self.error)) is not None:
            raise ValueError(
                f"quantize={self.name!r} does not work with this PyTorch and processor ({reason}): "
                "leave it out, or use the llama.cpp backend"
            )
        return lambda weight, bias: self.product(weight, bias) if self.fits(weight) else other(weight, bias)


QUANTIZED = {
    kind.name: kind
    for kind in (
        Kind("int8", int8_product, lambda weight: weight.shape[0] >= NARROWEST, INT8_ERROR),
        Kind(
            "int4",
            Int4Product,
            lambda weight: weight.shape[1] % GROUP == 0 and weight.shape[0] % NARROWEST == 0,
            0.15,
        ),
    )
}
