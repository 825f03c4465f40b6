"""Attention over a part of the rows, with what joining it to others takes: FlashAttention's splits (arXiv:2205.14135,
section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Form:
    """What a layer's attention does besides the ordinary."""

    scale: float
    window: int | None = None  # rows that a row sees, itself included
    softcap: float | None = None
    sinks: Tensor | None = None  # (H,)

    @property
    def plain(self) -> bool:
        """Whether softmax over the scaled products is all there is."""
        return self.softcap is None and self.sinks is None


def attended(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form, causal: bool = False) -> Tensor:
    """Plain attention of q (B, H, n, d): (B, H, n, d'). `mask` is additive, of n rows or of the H / G * n that are
    stacked; `causal`: the rows are the queries' own, as a chain."""
    if _stacks(q, mask, causal):
        out = scaled_dot_product_attention(_stacked(q, keys), keys, values, attn_mask=mask, scale=form.scale)
        return _unstacked(out, q)
    gqa = q.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, is_causal=causal, scale=form.scale, enable_gqa=gqa
    )


def _stacks(q: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """Whether queries can be stacked: all rows see the same, or the mask is made for it."""
    n = q.shape[2]
    return n == 1 or (mask is None and not causal) or (mask is not None and mask.shape[-2] > n)


def _stacked(q: Tensor, keys: Tensor) -> Tensor:
    """Queries (B, H, n, d) as (B, G, H / G * n, d): those of all heads that read the same keys below one another.
    PyTorch's kernel for CPUs reads the keys once for all of them then, and once for each head else. A single row of
    bfloat16 takes it three times as long as two, so such a row is doubled."""
    batch, heads, n, width = q.shape
    q = q.reshape(batch, keys.shape[1], heads // keys.shape[1] * n, width)
    if q.shape[2] == 1 and q.dtype in NARROW and q.device.type == "cpu":
        q = q.expand(-1, -1, 2, -1)
    return q


def _unstacked(found: Tensor, q: Tensor) -> Tensor:
    """Outputs (B, G, H / G * n, d') for queries (B, H, n, d) as (B, H, n, d')."""
    batch, heads, n, _ = q.shape
    return found[:, :, : heads // found.shape[1] * n].reshape(batch, heads, n, found.shape[3])


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """A mask: 0 where visible (bool), -inf elsewhere, in the dtype and on the device of `like`."""
    mask = torch.zeros(visible.shape, dtype=like.dtype)
    return mask.masked_fill_(~visible, float("-inf")).to(like.device)


def part(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """The same over one part of the rows, with what it takes to join it to others: output (B, H, n, d') and log-sum-exp
    (B, H, n), -inf where it sees none of them."""
    if q.device.type == "cpu" and form.softcap is None and keys.shape[-1] == values.shape[-1]:
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if _stacks(q, mask, causal):
            out, lse = attention(_stacked(q, keys), keys, values, attn_mask=mask, scale=form.scale)
            return _unstacked(out, q), _unstacked(lse[..., None], q)[..., 0].float()
        out, lse = attention(q, keys, values, 0.0, causal, attn_mask=mask, scale=form.scale)
        return out, lse.float()
    if mask is not None and mask.shape[-2] > q.shape[2]:
        mask = mask[..., : q.shape[2], :]  # which repeats
    if causal:
        n = q.shape[2]
        mask = q.new_full((n, n), float("-inf")).triu_(1)
    return scored_part(q, keys, values, mask, form)


def scored_part(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form) -> tuple[Tensor, Tensor]:
    """The same step by step, in float32."""
    logits = scores(q, keys, mask, form)
    lse = logits.logsumexp(-1)
    p = torch.exp(logits - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    return p @ values.repeat_interleave(q.shape[1] // keys.shape[1], 1).float(), lse


def scores(q: Tensor, keys: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Attention logits (B, H, n, rows) in float32."""
    found = q.float() @ keys.repeat_interleave(q.shape[1] // keys.shape[1], 1).float().transpose(-1, -2) * form.scale
    if form.softcap is not None:
        found = form.softcap * torch.tanh(found / form.softcap)
    return found if mask is None else found + mask.float()


def join(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint parts together, in float32. One of the two sees a row at least."""
    (out, lse), (other_out, other_lse) = one, other
    total = torch.logaddexp(lse, other_lse)
    weighted = out.float() * torch.exp(lse - total)[..., None]
    return weighted.addcmul_(other_out.float(), torch.exp(other_lse - total)[..., None]), total


def sunk(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """With sinks (H,), which join the denominator only (gpt-oss)."""
    return out.float() * torch.exp(lse - torch.logaddexp(lse, sinks.float().view(1, -1, 1)))[..., None]
