"""The attention function that Segue registers with transformers: token trees of many sequences on one token axis.

A forward lays its `Plan` out with `following`; the function finds it there, since some families (stablelm, nemotron)
do not hand unknown keyword arguments down to their attention. For every item the function appends the new keys and
values to that sequence's cache and attends over its rows: causal kernel for a chain, ancestor mask for a tree, sliding
windows by position. Pieces of the past that several sequences share are attended once for all of them and merged by
log-sum-exp, as in FlashAttention's splits (arXiv:2205.14135) and cascade inference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from segue.data import CapabilityError, DraftTree
from segue.models.transformers.invariant import own_rows, within
from segue.models.transformers.kv import KVCache, Shared

NAME = "segue"
_IGNORED = {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states"}
_IGNORED |= {"cache_position", "return_dict", "attention_mask", "position_embeddings", "past_key_values"}
_IGNORED |= {"logits_to_keep", "num_items_in_batch", "output_router_logits", "cumulative_seqlens_q"}


@dataclass(slots=True)
class Item:
    """One sequence's share of a pack: rows [start, stop) of the token axis."""

    cache: KVCache
    tree: DraftTree
    past: int  # committed rows of the layers that run
    start: int
    stop: int
    since: int = 0  # the tree's nodes before this one are provisional rows already
    attention: tuple[tuple[int, ...], tuple[int, ...] | None] | None = None  # (layers, nodes or all): weights wanted
    weights: dict[int, Tensor] = field(default_factory=dict)  # layer -> (H, nodes, rows): where they are put
    masks: dict[tuple[int, int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def rows(self, layer: int) -> int:
        """Committed rows of a layer: fewer than the text has tokens where a view leaves some out."""
        return self.past - self.cache.dropped[layer]

    def mask(self, layer: int, base: int, window: int | None, like: Tensor) -> Tensor | None:
        """Additive (n, rows) mask over a layer's rows from `base` on: the past, then the tree; None where every row is
        seen or the causal kernel applies. Built once for all alike layers of a forward."""
        n, total, past = self.stop - self.start, len(self.tree), self.rows(layer)
        if window is not None and window > self.past + max(self.tree.depths):
            window = None
        if window is not None and past != self.past:
            raise CapabilityError(f"layer {layer} sees a window of rows, and a view has left some of its rows out")
        key = (past, base, window, like.device)
        if key not in self.masks:
            self.masks[key] = None
            ordinary = self.tree.is_chain and (n == 1 or (past == base and self.since == 0))
            if window is not None or not ordinary:
                visible = torch.ones(n, past - base + total, dtype=torch.bool)
                visible[:, past - base :] = self.tree.ancestors()[self.since :]
                if window is not None:
                    depths = torch.tensor(self.tree.depths)
                    places = torch.cat([torch.arange(base - past, 0), depths])
                    visible &= depths[self.since :, None] - places[None, :] < window
                self.masks[key] = additive(visible, like)
        return self.masks[key]


@dataclass(frozen=True, slots=True)
class Form:
    """What a layer's attention does besides the ordinary."""

    scale: float
    window: int | None = None  # rows that a row sees, itself included
    softcap: float | None = None
    sinks: Tensor | None = None  # (H,)


@dataclass(slots=True)
class Plan:
    """What the attention function needs to know about a pack."""

    items: list[Item]
    alone: bool = False  # every row attends by itself (invariant.py)
    seen: dict[int, tuple[Tensor, Tensor, Form]] | None = None  # while probing: layer -> (key, value, form)
    pieces: list[tuple[Shared, list[int]]] = field(init=False)  # shared pieces with the numbers of their readers
    turns: tuple[Any, Tensor, Tensor] | None = None  # what `rotation` gave, and for which positions

    def __post_init__(self) -> None:
        readers: dict[tuple[int, int], tuple[Shared, list[int]]] = {}
        for number, item in enumerate(self.items):
            for piece in item.cache.shared:
                readers.setdefault((id(piece.buffers), piece.rows), (piece, []))[1].append(number)
        self.pieces = list(readers.values())

    def rotation(self, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (T, 1, d) of a network's rotary (1, T, d) pair; made once for all its layers."""
        if self.turns is None or self.turns[0] is not positions:
            cos, sin = positions
            half = sin.shape[-1] // 2
            signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
            self.turns = positions, cos[0, :, None], signed[0, :, None]
        return self.turns[1], self.turns[2]


_current: ContextVar[Plan | None] = ContextVar("segue_plan", default=None)


@contextmanager
def following(plan: Plan) -> Iterator[Plan]:
    """Within the context, calls of Segue's attention in this thread follow `plan`."""
    token = _current.set(plan)
    try:
        yield plan
    finally:
        _current.reset(token)


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where visible (bool), -inf elsewhere, in the dtype and on the device of `like`."""
    mask = torch.zeros(visible.shape, dtype=like.dtype)
    return mask.masked_fill_(~visible, float("-inf")).to(like.device)


def attention(
    module: nn.Module,
    query: Tensor,  # (1, H, T, d)
    key: Tensor,  # (1, G, T, d)
    value: Tensor,  # (1, G, T, d')
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Returns (1, T, H, d') as transformers' attention interface asks."""
    plan = current_plan()
    strange = sorted(k for k, v in others.items() if v is not None and v is not False and k not in _IGNORED)
    if strange:
        raise CapabilityError(f"its attention passes {', '.join(strange)}, which Segue does not know how to honour")
    if attention_mask is not None:
        raise CapabilityError("its attention brings a mask of its own, which Segue does not know how to honour")
    layer: int = module.layer_idx  # type: ignore[assignment]
    form = Form(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    return attend(plan, layer, query, key, value, form), None


def current_plan() -> Plan:
    """The plan of the forward that runs in this thread."""
    plan = _current.get()
    if plan is None:
        raise CapabilityError(
            "this model is driven by Segue and needs its plan: call it through the LM, or "
            "set_attn_implementation('sdpa') to use the bare transformers model again"
        )
    return plan


def attend(plan: Plan, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Append the new rows of every item to its cache and attend over all it has. Shapes as for `attention`."""
    if plan.seen is not None:
        plan.seen[layer] = key, value, form
    plain = form.softcap is None and form.sinks is None
    merged = _attend_shared(plan, layer, query, form) if plan.pieces and not plan.alone else {}
    outputs = []
    whole = len(plan.items) == 1
    for number, item in enumerate(plan.items):
        rows = slice(item.start, item.stop)
        q = query if whole else query[:, :, rows]
        new = (key, value) if whole else (key[:, :, rows], value[:, :, rows])
        keys, values = item.cache.append(layer, *new, item.since)
        if plan.alone:
            outputs.append(_attend_alone(item, layer, q, keys, values, form))
            continue
        mask = item.mask(layer, item.cache.base, form.window, q)
        _keep_weights(item, layer, q, form)
        if plain and number not in merged:
            causal = mask is None and q.shape[2] > 1
            gqa = q.shape[1] != keys.shape[1]
            out = scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, is_causal=causal, scale=form.scale, enable_gqa=gqa
            )
        else:
            parts = merged.get(number, [])
            if mask is None and q.shape[2] > 1:
                mask = additive(item.tree.ancestors(), q)
            parts.append(_part(q, keys, values, mask, form))
            out = _merge(parts, form.sinks).to(q.dtype)
        outputs.append(out)
    joined = outputs[0] if whole else torch.cat(outputs, dim=2)
    return joined.transpose(1, 2)


def _attend_alone(item: Item, layer: int, q: Tensor, keys: Tensor, values: Tensor, form: Form) -> Tensor:
    """The same with every row by itself: one query over the rows of its own text."""
    _keep_weights(item, layer, q, form)
    rows = []
    for node, (own_keys, own_values) in enumerate(own_rows(item, layer, keys, values)):
        one, k, v = q[:, :, node : node + 1], within(own_keys, form), within(own_values, form)
        if form.softcap is None and form.sinks is None:
            gqa = q.shape[1] != k.shape[1]
            rows.append(scaled_dot_product_attention(one, k, v, scale=form.scale, enable_gqa=gqa))
        else:
            part = _scored_part(one, k, v, None, form)
            rows.append(_merge([part], form.sinks).to(q.dtype))
    return torch.cat(rows, 2)


def _attend_shared(
    plan: Plan,
    layer: int,
    query: Tensor,
    form: Form,
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Partial results of every item over the pieces it shares, one attention call for all readers of a piece."""
    merged: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for piece, numbers in plan.pieces:
        items = [plan.items[n] for n in numbers]
        keys, values = items[0].cache.piece(piece, layer)
        everyone = len(numbers) == len(plan.items)
        q = query if everyone else torch.cat([query[:, :, i.start : i.stop] for i in items], dim=2)
        mask = None
        if form.window is not None:
            places = torch.cat([torch.tensor(i.tree.depths[i.since :]) + i.past for i in items])
            distance = places[:, None] - torch.arange(piece.start, piece.start + keys.shape[2])[None, :]
            if int(distance.max()) >= form.window:
                mask = additive(distance < form.window, q)
        out, lse = _part(q, keys, values, mask, form)
        at = 0
        for number, item in zip(numbers, items, strict=True):
            n = item.stop - item.start
            merged[number].append((out[:, :, at : at + n], lse[:, :, at : at + n]))
            at += n
    return merged


def _part(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form) -> tuple[Tensor, Tensor]:
    """Attention over one part of the rows: output (1, H, n, d') and log-sum-exp (1, H, n), -inf where it sees none."""
    if q.device.type == "cpu" and form.softcap is None and mask is None and keys.shape[-1] == values.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, keys, values, scale=form.scale)
        return out, lse.float()
    return _scored_part(q, keys, values, mask, form)


def _scored_part(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Form) -> tuple[Tensor, Tensor]:
    """The same step by step, in float32."""
    scores = _scores(q, keys, mask, form)
    lse = scores.logsumexp(-1)
    p = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    repeat = q.shape[1] // keys.shape[1]
    return p @ values.repeat_interleave(repeat, 1).float(), lse


def _scores(q: Tensor, keys: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Attention logits (1, H, n, rows) in float32."""
    scores = q.float() @ keys.repeat_interleave(q.shape[1] // keys.shape[1], 1).float().transpose(-1, -2) * form.scale
    if form.softcap is not None:
        scores = form.softcap * torch.tanh(scores / form.softcap)
    return scores if mask is None else scores + mask.float()


def _merge(parts: list[tuple[Tensor, Tensor]], sinks: Tensor | None) -> Tensor:
    """One attention output from parts over disjoint rows; `sinks` (H,) join the denominator only (gpt-oss)."""
    lses = [lse for _, lse in parts]
    if sinks is not None:
        lses.append(sinks.float().view(1, -1, 1).expand_as(lses[0]))
    total = torch.logsumexp(torch.stack(lses), 0)
    out = sum(part.float() * torch.exp(lse - total)[..., None] for part, lse in parts)
    assert isinstance(out, Tensor)
    return out


def _keep_weights(item: Item, layer: int, q: Tensor, form: Form) -> None:
    """Attention weights (H, nodes, rows) of the wanted nodes over all rows they could see, from the first on."""
    if item.attention is None or layer not in item.attention[0]:
        return
    keys = torch.cat([part for part, _ in item.cache.past(layer, item.rows(layer) + len(item.tree))], dim=2)
    mask = item.mask(layer, 0, form.window, q)
    if mask is None and q.shape[2] > 1:
        mask = additive(item.tree.ancestors(), q)
    wanted = item.attention[1]
    nodes = [node - item.since for node in (range(item.since, len(item.tree)) if wanted is None else wanted)]
    rows = q[:, :, nodes]
    seen = None if mask is None else mask[nodes]
    item.weights[layer] = torch.softmax(_scores(rows, keys, seen, form), -1)[0]
