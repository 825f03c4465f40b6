"""The attention of encoder-decoders under Segue: a pack's own past with position biases, and the sources beside it.

Self-attention without a bias is that of any other model (attention.py). A relative position bias is looked up by the
true distance of two tokens: depth in the tree, not place in the pack. In cross-attention each item's rows see their own
source, all of it and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from segue.data import CapabilityError
from segue.models.transformers.attention import Item, Plan, attend
from segue.models.transformers.kv import Source
from segue.models.transformers.parts import Form, additive

NAME = "segue-seq2seq"
_KNOWN = {"dropout", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "is_causal"}

# (module, query (B, H, T, d), key (B, G, S, d), value (B, G, S, d'), scale, bias (1, H, T, S)) -> (B, T, H, d')
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
_attends: ContextVar[Attend | None] = ContextVar("segue_seq2seq", default=None)


@contextmanager
def attending(by: Attend) -> Iterator[None]:
    """Within the context, attention of encoder-decoders in this thread is computed by `by`."""
    token = _attends.set(by)
    try:
        yield
    finally:
        _attends.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What is registered with transformers."""
    strange = sorted(k for k, v in others.items() if v is not None and v is not False and k not in _KNOWN)
    if strange or attention_mask is not None:
        what = ", ".join(strange) or "a mask of its own"
        raise CapabilityError(f"its attention passes {what}, which Segue does not know how to honour")
    by = _attends.get()
    if by is None:
        raise CapabilityError(
            "this model is driven by Segue: call it through the LM, or set_attn_implementation('sdpa') to use the "
            "bare transformers model again"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return by(module, query, key, value, scale, position_bias), None


def whole_text(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
) -> Tensor:
    """An encoder's attention: every row sees every row."""
    gqa = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


def nothing(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Zeros: where only what the layers make of a source is of interest."""
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


class Pack:
    """The attention of one packed forward."""

    def __init__(self, plan: Plan, marker: Tensor, biases: list[Tensor | None]) -> None:
        """`marker` stands for the keys of every cross-attention; `biases` are a table (H, L) by distance, or None, for
        every layer."""
        self._plan, self._marker, self._tables = plan, marker, biases
        self._masks: dict[tuple[int, int], Tensor] = {}
        readers: dict[int, tuple[Source, list[Item]]] = {}
        for item in plan.items:
            source = item.cache.source
            assert source is not None
            readers.setdefault(id(source), (source, []))[1].append(item)
        self._readers = list(readers.values())

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
    ) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if key is self._marker:
            return self._cross(layer, query, scale)
        table = self._tables[layer]
        if table is None:
            return attend(self._plan, layer, query, key, value, Form(scale))
        return self._biased(layer, query, key, value, scale, table)

    def _cross(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """Every item's rows over its own source; items that share one at once."""
        if len(self._readers) == 1:
            return self._over(self._readers[0][0], layer, query, scale).transpose(1, 2)
        outputs: dict[int, Tensor] = {}
        for source, items in self._readers:
            out = self._over(source, layer, torch.cat([query[:, :, i.start : i.stop] for i in items], 2), scale)
            sizes = [i.stop - i.start for i in items]
            outputs |= {i.start: part for i, part in zip(items, torch.split(out, sizes, 2), strict=True)}
        return torch.cat([outputs[i.start] for i in self._plan.items], 2).transpose(1, 2)

    def _over(self, source: Source, layer: int, query: Tensor, scale: float) -> Tensor:
        assert source.rows is not None
        keys, values = source.rows[layer]
        gqa = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=gqa)

    def _biased(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, table: Tensor) -> Tensor:
        """Self-attention with a bias by distance: the whole past of an item at once, shared pieces included."""
        outputs = []
        for item in self._plan.items:
            if item.attention is not None:
                raise CapabilityError("attention rows of layers with a relative position bias are not given out")
            rows = slice(item.start, item.stop)
            keys, values = item.cache.append(layer, key[:, :, rows], value[:, :, rows], item.since)
            if item.cache.shared:
                pieces = [item.cache.piece(piece, layer) for piece in item.cache.shared]
                keys = torch.cat([*(k for k, _ in pieces), keys], 2)
                values = torch.cat([*(v for _, v in pieces), values], 2)
            q, gqa = query[:, :, rows], query.shape[1] != key.shape[1]
            mask = self._bias(item, table, q)
            outputs.append(scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=gqa))
        return torch.cat(outputs, 2).transpose(1, 2)

    def _bias(self, item: Item, table: Tensor, like: Tensor) -> Tensor:
        """(1, H, n, rows) for an item: the bias of every distance, -inf where a node is no ancestor. Layers that have
        one table share it."""
        key = item.start, id(table)
        if key not in self._masks:
            self._masks[key] = distance_bias(item, table, like)
        return self._masks[key]


def distance_bias(item: Item, table: Tensor, like: Tensor) -> Tensor:
    """The bias (1, H, n, rows) of an item from a table (H, L) by distance."""
    n, nodes = item.stop - item.start, len(item.tree)
    depths = torch.tensor(item.tree.depths)
    distances = item.past + depths[-n:, None] - torch.cat([torch.arange(item.past), item.past + depths])[None]
    bias = table[:, distances.clamp(0, table.shape[1] - 1).to(table.device)].to(like.dtype)
    if nodes > 1:
        visible = torch.ones(n, item.past + nodes, dtype=torch.bool)
        visible[:, item.past :] = item.tree.ancestors()[-n:]
        bias = bias + additive(visible, like)
    return bias[None]
