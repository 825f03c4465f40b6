"""The parts of a transformer layer for drafters that attend: rotary positions, attention, a gated feed-forward network.

Queries see rows of keys and values that all of them share, and each its own chain of further rows behind those: so the
branches of a draft tree, and all texts' drafts in training, cost no mask over each other.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 10_000.0  # of the rotary angles

Rows = tuple[Tensor, Tensor]  # keys and values


class Attention(nn.Module):
    """Multi-head attention with a norm before it and the residual behind it.

    Layers that others trained may have fewer heads G of keys and values than the H of queries, which then share them in
    turn, another size of a head, no norm, biases before the rotation, and another base of the angles."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        groups: int | None = None,
        size: int | None = None,
        norm: bool = True,
        bias: bool = False,
        base: float = BASE,
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.base = heads, groups or heads, base
        self.size = size or 2 * math.ceil(width / (2 * heads))  # of a head; even, since pairs are rotated
        self.norm = nn.RMSNorm(width, eps=1e-6) if norm else nn.Identity()
        self.query = nn.Linear(width, heads * self.size, bias=bias)
        self.keys_and_values = nn.Linear(width, 2 * self.groups * self.size, bias=bias)
        self.out = nn.Linear(heads * self.size, width, bias=False)

    def rows(self, states: Tensor, positions: range) -> Rows:
        """States (..., N, D) at N positions, or all at one -> keys and values (..., G, N, C)."""
        keys, values = self.keys_and_values(self.norm(states)).chunk(2, -1)
        return rotated(self._split(keys), positions, self.base), self._split(values)

    def forward(
        self, states: Tensor, positions: range, shared: Rows, mask: Tensor | None = None, chain: Rows | None = None
    ) -> Tensor:
        """States (..., N, D) at N positions, or all at one, with what they found in the rows (..., G, S, C) that all
        see, or those among them that mask (N, S) names, and each in its own chain (..., G, N, J, C)."""
        queries = rotated(self._split(self.query(self.norm(states))), positions, self.base) / self.size**0.5
        keys, values = (self._of_heads(rows, -3) for rows in shared)
        weights = queries @ keys.transpose(-1, -2)
        if mask is not None:
            weights = weights.masked_fill(~mask, -torch.inf)
        if chain is None:
            found = weights.softmax(-1) @ values
        else:
            own_keys, own_values = (self._of_heads(rows, -4) for rows in chain)
            own = torch.einsum("...nc,...njc->...nj", queries, own_keys)
            count = weights.shape[-1]
            weights = torch.cat([weights, own], -1).softmax(-1)
            found = weights[..., :count] @ values
            found = found + torch.einsum("...nj,...njc->...nc", weights[..., count:], own_values)
        out: Tensor = self.out(found.transpose(-2, -3).flatten(-2))
        return states + out

    def _split(self, rows: Tensor) -> Tensor:
        """(..., N, H * C) -> (..., H, N, C), or those of G heads."""
        return rows.view(*rows.shape[:-1], -1, self.size).transpose(-2, -3)

    def _of_heads(self, rows: Tensor, dim: int) -> Tensor:
        """Rows of G heads as H heads see them."""
        return rows if self.groups == self.heads else rows.repeat_interleave(self.heads // self.groups, dim)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(states)) * self.up(states))
        return out


def rotated(rows: Tensor, positions: range, base: float = BASE) -> Tensor:
    """Rows (..., N, C) turned by the angles of their N positions, or of one that all are at (Su et al. 2021)."""
    half = rows.shape[-1] // 2
    cos, sin = turns(half, positions, rows.dtype, rows.device, base)
    return rows * cos + rows.roll(half, -1) * sin


def turns(
    half: int, positions: range, dtype: torch.dtype, device: torch.device, base: float = BASE
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, C) of these positions; the sines of a row's first half are negative."""
    cos, sin = _turns(half, 1 << positions.stop.bit_length(), dtype, device, base)
    return cos[positions.start : positions.stop], sin[positions.start : positions.stop]


@lru_cache(maxsize=64)
def _turns(half: int, length: int, dtype: torch.dtype, device: torch.device, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, C) of the positions from 0; the sines of a row's first half are negative."""
    with torch.inference_mode(False):  # training saves them for its backward pass
        speeds = base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * speeds
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def behind(chain: Rows | None, rows: Rows) -> Rows:
    """Chains (..., H, N, J, C), or none yet, with one row (..., H, N, C) more each."""
    if chain is None:
        return rows[0].unsqueeze(-2), rows[1].unsqueeze(-2)
    return torch.cat([chain[0], rows[0].unsqueeze(-2)], -2), torch.cat([chain[1], rows[1].unsqueeze(-2)], -2)
