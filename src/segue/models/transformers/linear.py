"""Linear layers with weights packed once for oneDNN, where that is faster: on CPUs, after loading.

PyTorch's own linear is handed the plain weight on every call. The packed product is the same arithmetic; in float32 it
may differ in the last bits because sums are taken in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 8  # the row count that the packed layout is made for: a step or a small tree
SMALLEST_FLOAT32 = 2**20  # weights below this are faster unpacked in float32 (measured, Zen 4)


class PackedLinear(nn.Module):
    """x (..., in) -> (..., out) with a packed weight. Inference only: the original weight is not kept."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._product: Any = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._product(x, self._packed, self._bias, "none", [], "")
        return out


def pack(network: nn.Module) -> int:
    """Replace the linear layers of `network` that gain by it; returns how many. The op is private to PyTorch: where it
    is missing or does not agree with the ordinary product, nothing is replaced."""
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and _gains(child)
    ]
    if not places or not _agrees(places[0][2]):
        return 0
    for parent, name, linear in places:
        setattr(parent, name, PackedLinear(linear))
    return len(places)


def _gains(linear: nn.Linear) -> bool:
    weight = linear.weight
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.bfloat16 or (weight.dtype == torch.float32 and weight.numel() >= SMALLEST_FLOAT32)


@torch.no_grad()
def _agrees(linear: nn.Linear) -> bool:
    """Compare one layer with the ordinary product, for one row and for several."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    try:
        packed = PackedLinear(linear)
        for rows in (1, 3, 17):
            x = torch.linspace(-1, 1, rows * linear.in_features, dtype=linear.weight.dtype)
            x = x.view(1, rows, linear.in_features)
            torch.testing.assert_close(packed(x), linear(x), rtol=1e-2, atol=1e-2)
    except (RuntimeError, NotImplementedError, AssertionError):
        return False
    return True
