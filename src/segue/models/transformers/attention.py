"""The attention function that Segue registers with transformers: token trees of many sequences on one token axis.

A forward lays its `Plan` out with `following`; the function finds it there, since some families (stablelm, nemotron)
do not hand unknown keyword arguments down to their attention. The function appends the new keys and values to the
sequences' caches and attends over their rows: causal kernel for a chain, ancestor mask for a tree, sliding windows by
position; one call for sequences that lie side by side (together.py). Pieces of the past that several sequences share
are attended once for all of them and joined by log-sum-exp, as in cascade inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segue.data import CapabilityError, DraftTree
from segue.models.transformers.invariant import own_rows, within
from segue.models.transformers.kv import KVCache, Shared
from segue.models.transformers.parts import Form, additive, attended, join, part, scored_part, scores, sunk
from segue.models.transformers.together import Together, batches

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
        past = self.rows(layer)
        if not self.windowed(window):
            window = None
        if window is not None and past != self.past:
            raise CapabilityError(f"layer {layer} sees a window of rows, and a view has left some of its rows out")
        key = (past, base, window, like.device)
        if key not in self.masks:
            ordinary = self.tree.is_chain and (self.stop - self.start == 1 or (past == base and self.since == 0))
            needed = window is not None or not ordinary
            self.masks[key] = additive(self.visible(past, base, window), like) if needed else None
        return self.masks[key]

    def windowed(self, window: int | None) -> bool:
        """Whether a window leaves something out."""
        return window is not None and window <= self.past + max(self.tree.depths)

    def visible(self, past: int, base: int, window: int | None) -> Tensor:
        """Which of a layer's `past` rows from `base` on, and of the tree behind them, each new row sees: bool (n,
        rows)."""
        found = torch.ones(self.stop - self.start, past - base + len(self.tree), dtype=torch.bool)
        found[:, past - base :] = self.tree.ancestors()[self.since :]
        if window is not None:
            depths = torch.tensor(self.tree.depths)
            places = torch.cat([torch.arange(base - past, 0), depths])
            found &= depths[self.since :, None] - places[None, :] < window
        return found

    @property
    def ordinary(self) -> bool:
        """Whether its rows are those of its text, and nothing but logits is wanted of them."""
        return self.attention is None and not any(self.cache.dropped)

    @property
    def slot_index(self) -> int:
        assert self.cache.slot is not None
        return self.cache.slot.index


@dataclass(slots=True)
class Plan:
    """What the attention function needs to know about a pack."""

    items: list[Item]
    alone: bool = False  # every row attends by itself (invariant.py)
    seen: dict[int, tuple[Tensor, Tensor, Form]] | None = None  # while probing: layer -> (key, value, form)
    pieces: list[tuple[Shared, list[Item]]] = field(init=False)  # shared pieces with their readers
    turns: tuple[Any, Tensor, Tensor] | None = None  # what `rotation` gave, and for which positions
    groups: Groups | None = None

    def __post_init__(self) -> None:
        readers: dict[tuple[int, int], tuple[Shared, list[Item]]] = {}
        for item in self.items:
            for piece in item.cache.shared:
                readers.setdefault((id(piece.slot), piece.rows), (piece, []))[1].append(item)
        self.pieces = list(readers.values())

    def rotation(self, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (T, 1, d) of a network's rotary (1, T, d) pair; made once for all its layers."""
        if self.turns is None or self.turns[0] is not positions:
            cos, sin = positions
            half = sin.shape[-1] // 2
            signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
            self.turns = positions, cos[0, :, None], signed[0, :, None]
        return self.turns[1], self.turns[2]

    def grouped(self, device: torch.device) -> Groups:
        """The items by how they are attended; made once for all layers."""
        if self.groups is None:
            self.groups = Groups(self.items, device)
        return self.groups


class Groups:
    """The items of a pack: batches, and those that are attended one by one."""

    def __init__(self, items: list[Item], device: torch.device) -> None:
        together, self.single = batches(items) if len(items) > 1 else ([], items)
        self.together = [Together(members, device) for members in together]
        rows = [row for batch in self.together for row in batch.rows]
        rows += [row for item in self.single for row in range(item.start, item.stop)]
        self._order: Tensor | None = None  # back to the order of the token axis
        if rows != sorted(rows):
            self._order = torch.tensor(rows, device=device).argsort()

    def joined(self, parts: list[Tensor]) -> Tensor:
        """What was found for the batches and for the single items, (1, H, rows, ...) each, in the order of the token
        axis."""
        found = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return found if self._order is None else found[:, :, self._order]


_current: ContextVar[Plan | None] = ContextVar("segue_plan", default=None)


@contextmanager
def following(plan: Plan) -> Iterator[Plan]:
    """Within the context, calls of Segue's attention in this thread follow `plan`."""
    token = _current.set(plan)
    try:
        yield plan
    finally:
        _current.reset(token)


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
    if plan.alone:
        outputs = [_attend_alone(item, layer, query, key, value, form) for item in plan.items]
        return torch.cat(outputs, 2).transpose(1, 2)
    groups = plan.grouped(query.device)
    whole = form.plain and not plan.pieces
    found = [batch.attend(layer, query, key, value, form, whole) for batch in groups.together]
    found += [_attend_single(item, layer, query, key, value, form, whole) for item in groups.single]
    out = groups.joined([one for one, _ in found])
    if not whole:
        lse = groups.joined([sums for _, sums in found if sums is not None])
        for piece, readers in plan.pieces:
            out, lse = _join_piece((out, lse), piece, readers, layer, query, form)
        out = (out if form.sinks is None else sunk(out, lse, form.sinks)).to(query.dtype)
    return out.transpose(1, 2)


def _attend_single(
    item: Item, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form, whole: bool
) -> tuple[Tensor, Tensor | None]:
    """One item over its private rows; result as of `Together.attend`."""
    q, keys, values = _appended(item, layer, query, key, value)
    mask = item.mask(layer, item.cache.base, form.window, q)
    causal = mask is None and q.shape[2] > 1
    _keep_weights(item, layer, q, form)
    if not whole:
        return part(q, keys, values, mask, form, causal)
    return attended(q, keys, values, mask, form, causal), None


def _appended(item: Item, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An item's queries, and its private keys and values with the new ones."""
    if item.stop - item.start < query.shape[2]:
        query, key, value = (rows[:, :, item.start : item.stop] for rows in (query, key, value))
    return query, *item.cache.append(layer, key, value, item.since)


def _attend_alone(item: Item, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """One item with every row by itself: one query over the rows of its own text."""
    q, keys, values = _appended(item, layer, query, key, value)
    _keep_weights(item, layer, q, form)
    rows = []
    for node, (own_keys, own_values) in enumerate(own_rows(item, layer, keys, values)):
        one, k, v = q[:, :, node : node + 1], within(own_keys, form), within(own_values, form)
        if form.plain:
            rows.append(attended(one, k, v, None, form))
            continue
        out, lse = scored_part(one, k, v, None, form)
        rows.append((out if form.sinks is None else sunk(out, lse, form.sinks)).to(q.dtype))
    return torch.cat(rows, 2)


def _join_piece(
    found: tuple[Tensor, Tensor], piece: Shared, readers: list[Item], layer: int, query: Tensor, form: Form
) -> tuple[Tensor, Tensor]:
    """Add what the readers of a piece see of it, in one call, to what was found for all rows."""
    keys, values = readers[0].cache.piece(piece, layer)
    rows = None  # all of them
    if sum(item.stop - item.start for item in readers) < query.shape[2]:
        rows = torch.cat([torch.arange(item.start, item.stop) for item in readers]).to(query.device)
    q = query if rows is None else query[:, :, rows]
    if any(item.windowed(form.window) for item in readers):
        assert form.window is not None
        places = torch.cat([torch.tensor(item.tree.depths[item.since :]) + item.past for item in readers])
        distance = places[:, None] - torch.arange(piece.start, piece.start + keys.shape[2])[None, :]
        seen = scored_part(q, keys, values, additive(distance < form.window, q), form)  # knows rows that see nothing
    else:
        seen = part(q, keys, values, None, form)
    if rows is None:
        return join(found, seen)
    out, lse = found
    out, lse = out.float(), lse.clone()
    out[:, :, rows], lse[:, :, rows] = join((out[:, :, rows], lse[:, :, rows]), seen)
    return out, lse


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
    item.weights[layer] = torch.softmax(scores(rows, keys, seen, form), -1)[0]
