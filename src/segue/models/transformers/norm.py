"""Root-mean-square norms in few operations, in the three ways in which families round and weigh.

PyTorch's own rms_norm is a dozen operations on a CPU, and its layer norm is one kernel. The layer norm of x beside -x
subtracts the mean 0, and so it is x over its root mean square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SCALES = (0.02, 1.0, 50.0)  # of the random inputs


def over_rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """weight * x / rms(x) for x (..., D) in float32; `weight` (2 D,) is twice the norm's own."""
    width = x.shape[-1]
    out: Tensor = torch.native_layer_norm(torch.cat((x, -x), -1), (2 * width,), weight, None, eps)[0]
    return out[..., :width]


class WeighedAfter(nn.Module):
    """weight * round(x / rms(x)): Llama, Qwen, Mistral. In float32 the kernel may weigh at once."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps
        self.weight_bytes = weight.numel() * weight.element_size()
        self._twice = self._wide(weight).repeat(2)

    def _wide(self, weight: Tensor) -> Tensor:
        return weight.float()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return over_rms(x, self._twice, self.eps)
        return over_rms(x.float(), None, self.eps).to(x.dtype).mul_(self.weight)


class WeighedBefore(WeighedAfter):
    """round(weight * x / rms(x)): OLMo 2."""

    def forward(self, x: Tensor) -> Tensor:
        return over_rms(x.float(), self._twice, self.eps).to(x.dtype)


class WeighedAroundOne(WeighedBefore):
    """round((1 + weight) * x / rms(x)): Gemma."""

    def _wide(self, weight: Tensor) -> Tensor:
        return 1.0 + weight.float()


FORMS = (WeighedAfter, WeighedBefore, WeighedAroundOne)


def lean_norm(part: Any) -> nn.Module | None:
    """The form that gives what `part` gives, or None."""
    eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if not isinstance(eps, float):
        return None
    weight: Tensor = part.weight.detach()
    source = torch.Generator().manual_seed(0)
    shape = (1, 4, weight.shape[0])
    inputs = [(torch.randn(shape, generator=source) * scale).to(weight) for scale in SCALES]
    for form in FORMS:
        candidate = form(weight, eps)
        if all(_same(candidate(x), part(x)) for x in inputs):
            return candidate
    return None


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for the last bit of float32, which may tip a rounding of a narrower number now and then."""
    if ours.dtype != theirs.dtype or theirs.dtype == torch.float64:
        return False
    if theirs.dtype == torch.float32:
        return bool(torch.allclose(ours, theirs, rtol=2e-6, atol=1e-7))
    off = ours != theirs
    return float(off.float().mean()) < 0.01 and bool(torch.allclose(ours[off], theirs[off], rtol=1e-2, atol=1e-6))
