"""The drafting form of an attending drafter's layer: the same numbers as its training form in fewer operations.

A draft step is many products of few rows, which take less time than the calls around them and the weights' way to the
processor. So what reads the same input is one product, in the precision and the form of the base model's own; the
weights of norms and scales are part of the products behind them; queries and keys are rotated as one tensor; and the
branches of a draft tree keep their rows behind those of the text, in one buffer, where a bias of few columns says which
of them a branch sees. Built once from a network that does not learn any more.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.heads.layer import Attention, SwiGLU, turns
from segue.models.transformers.linear import dense_or_packed
from segue.models.transformers.norm import over_rms
from segue.models.transformers.quantized import Product

HIDDEN = -1e4  # added to the weight of what a branch does not see; finite in half precision too


class LeanAttention:
    """Multi-head attention with its norm, where it has one, and its residual."""

    def __init__(self, part: Attention, dtype: torch.dtype) -> None:
        self.heads, self.groups, self.size, self.base = part.heads, part.groups, part.size, part.base
        self._norm = part.norm if isinstance(part.norm, torch.nn.RMSNorm) else None
        query, other, root = part.query, part.keys_and_values, part.size**0.5
        weight = torch.cat([query.weight / root, other.weight])
        bias = None if query.bias is None else torch.cat([query.bias / root, other.bias])
        self._qkv = product(weight if self._norm is None else weight * self._norm.weight, dtype, bias)
        self._out = product(part.out.weight, dtype)

    def project(self, states: Tensor, positions: range) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (H, N, C), keys and values (G, N, C) of states (N, D) at N positions, or all at one."""
        joined = self._qkv(states if self._norm is None else normed(states, self._norm.eps))
        joined = joined.view(len(states), -1, self.size)
        qk, values = joined[:, : -self.groups], joined[:, -self.groups :]
        cos, sin = turns(self.size // 2, positions, states.dtype, states.device, self.base)
        qk = (qk * cos[:, None]).add_(qk.roll(self.size // 2, -1).mul_(sin[:, None])).transpose(0, 1)
        return qk[: self.heads], qk[self.heads :], values.transpose(0, 1)

    def find(self, states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """States (N, D) with what their queries found in the rows (G, S, C); `bias` (N, M) is that of the last M."""
        if bias is not None:
            bias = F.pad(bias, (keys.shape[1] - bias.shape[1], 0))
        shared = self.groups != self.heads
        found = F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=bias, scale=1.0, enable_gqa=shared
        )
        return states + self._out(found[0].transpose(0, 1).reshape(len(states), -1))


class LeanExperts:
    """Gated feed-forward networks on the same states, mixed: their norm, gate and up projections and what weighs the
    experts are one product, and so are their down projections."""

    def __init__(
        self, experts: list[SwiGLU], norm: torch.nn.RMSNorm, gate: torch.nn.Linear | None, dtype: torch.dtype
    ) -> None:
        self._count, self._eps = len(experts), norm.eps
        self._inner = sum(e.gate.weight.shape[0] for e in experts)
        parts = [e.gate.weight for e in experts] + [e.up.weight for e in experts]
        self._enter = product(torch.cat([*parts, *([] if gate is None else [gate.weight])]) * norm.weight, dtype)
        self._down = product(torch.cat([e.down.weight for e in experts], 1), dtype)

    def enter(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """For states (N, D): what the experts' down projections read (N, I), and the numbers (N, G) of the gate."""
        joined = self._enter(normed(states, self._eps))
        inner = F.silu(joined[:, : self._inner]).mul_(joined[:, self._inner : 2 * self._inner])
        return inner, joined[:, 2 * self._inner :]

    def leave(self, states: Tensor, inner: Tensor) -> Tensor:
        """States (N, D) with the outputs of all experts."""
        return states + self._down(inner)

    def mixed(self, states: Tensor, inner: Tensor, shares: Tensor) -> Tensor:
        """States (N, M, D) with the experts' outputs in M mixtures: `shares` (N, M, experts) of each."""
        parts = inner.view(len(states), 1, self._count, -1) * shares[..., None]
        out = self._down(parts.view(-1, self._inner))
        return states[:, None] + out.view(len(states), -1, out.shape[-1])


def product(weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Product:
    return dense_or_packed(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))


def normed(states: Tensor, eps: float | None) -> Tensor:
    """Over their root mean square."""
    if states.dtype == torch.float64:  # the kernel of the other form is not made for it
        return F.rms_norm(states, states.shape[-1:], None, eps)
    return over_rms(states, None, eps or 0.0)


@lru_cache(maxsize=64)
def apart(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, N) bias of branches that see themselves only."""
    with torch.inference_mode(False):
        bias = torch.full((count, count), HIDDEN, dtype=dtype, device=device)
        return bias.fill_diagonal_(0.0)


def beside(bias: Tensor | None, parents: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of the next N nodes: what their parents (N,), places in `bias`, see, and themselves."""
    own = apart(len(parents), dtype, parents.device)
    return own if bias is None else torch.cat([bias.index_select(0, parents), own], 1)
