"""Key and value rows of one sequence: a chain of shared read-only pieces and a private tail that grows by doubling.

Row i of a layer belongs to position i. Rows behind a layer's length are provisional: the last forward wrote them, and
only `commit` makes them part of the past. A layer that a forward skipped simply stays shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 64  # rows of a fresh buffer


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps for each token."""

    kv_heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        return self.kv_heads * (self.key_width + self.value_width) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The cache shape of a model; layers of one shape lie in one buffer, so that commit and growth are two copies."""

    layers: tuple[LayerShape, ...]
    groups: tuple[LayerShape, ...]
    slot: tuple[tuple[int, int], ...]  # layer -> (group, index in the group's buffer)

    @classmethod
    def of(cls, layers: list[LayerShape]) -> Layout:
        groups = list(dict.fromkeys(layers))
        counts = [0] * len(groups)
        slot = []
        for shape in layers:
            group = groups.index(shape)
            slot.append((group, counts[group]))
            counts[group] += 1
        return cls(tuple(layers), tuple(groups), tuple(slot))

    @property
    def bytes_per_row(self) -> int:
        return sum(shape.bytes for shape in self.layers)

    def empty(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Per group the keys (L, G, rows, d) and values (L, G, rows, d')."""
        buffers = []
        for group, shape in enumerate(self.groups):
            count = sum(1 for g, _ in self.slot if g == group)
            size = (count, shape.kv_heads, rows)
            keys = torch.empty(*size, shape.key_width, dtype=shape.dtype, device=shape.device)
            values = torch.empty(*size, shape.value_width, dtype=shape.dtype, device=shape.device)
            buffers.append((keys, values))
        return buffers


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows [start, start + rows) that several sequences read and none writes. `rows` is this holder's view: after a
    rollback a holder may see fewer than the buffer has."""

    buffers: list[tuple[Tensor, Tensor]]
    start: int
    rows: int
    layer_rows: tuple[int, ...]  # per layer: rows present, fewer where the layer was skipped


@dataclass(slots=True)
class Source:
    """A text that a decoder reads: its ids, and once encoded the keys and values of each decoder layer. Nobody writes
    to them again."""

    ids: list[int]
    rows: list[tuple[Tensor, Tensor]] | None = None  # (1, G, S, d) and (1, G, S, d')


class KVCache:
    """The past of one sequence."""

    __slots__ = ("_buffers", "_capacity", "_layers", "layout", "lengths", "ran", "shared", "source")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.shared: tuple[Shared, ...] = ()
        self.lengths = [0] * len(layout.layers)  # committed rows of every layer, absolute
        self.ran: tuple[int, ...] = tuple(range(len(layout.layers)))  # layers of the last forward
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._layers: list[tuple[Tensor, Tensor]] = []  # of every layer its part (1, G, rows, d) of the buffers
        self._capacity = 0
        self.source: Source | None = None  # what the decoder of an encoder-decoder reads besides: forks share it

    @property
    def base(self) -> int:
        """Rows in shared pieces; private row 0 is position `base`."""
        return self.shared[-1].start + self.shared[-1].rows if self.shared else 0

    @property
    def private_bytes(self) -> int:
        return self._capacity * self.layout.bytes_per_row

    def reserve(self, length: int, new: int, layers: tuple[int, ...] | None) -> None:
        """Make room for `new` provisional rows behind `length` committed ones in the layers that will run."""
        self.ran = layers if layers is not None else tuple(range(len(self.lengths)))
        for layer in self.ran:
            if self.lengths[layer] != length:
                raise ValueError(
                    f"layer {layer} holds {self.lengths[layer]} of {length} rows because earlier forwards skipped it; "
                    "roll the sequence back to the mark before they ran, or keep skipping that layer"
                )
        needed = length - self.base + new
        if needed > self._capacity:
            self._grow(max(needed, 2 * self._capacity, SMALLEST))

    def _grow(self, capacity: int) -> None:
        used = min(self._capacity, max(self.lengths) - self.base)
        buffers = self.layout.empty(capacity)
        if used > 0:
            for (keys, values), (old_keys, old_values) in zip(buffers, self._buffers, strict=True):
                keys[:, :, :used] = old_keys[:, :, :used]
                values[:, :, :used] = old_values[:, :, :used]
        self._buffers, self._capacity = buffers, capacity
        self._layers = [
            (buffers[group][0][index : index + 1], buffers[group][1][index : index + 1])
            for group, index in self.layout.slot
        ]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write provisional rows (1, G, n, d); returns the private rows so far, provisional ones included."""
        start = self.lengths[layer] - self.base
        end = start + keys.shape[2]
        own_keys, own_values = self._layers[layer]
        own_keys[:, :, start:end] = keys
        own_values[:, :, start:end] = values
        return own_keys[:, :, :end], own_values[:, :, :end]

    @torch.inference_mode()  # as in the forward: its buffers may only be written in that mode
    def commit(self, path: list[int]) -> None:
        """Keep the provisional rows numbered in `path`, in that order, in every layer that ran."""
        start = self.lengths[self.ran[0]] - self.base
        end = start + len(path)
        if path != list(range(len(path))):
            rows = [start + node for node in path]
            for keys, values in self._buffers:
                # Layers that did not run are moved along: rows behind their length mean nothing.
                keys[:, :, start:end] = keys[:, :, rows]
                values[:, :, start:end] = values[:, :, rows]
        for layer in self.ran:
            self.lengths[layer] += len(path)

    def truncate(self, length: int) -> None:
        """Forget every row at or behind position `length`, in every layer."""
        self.lengths = [min(own, length) for own in self.lengths]
        if length < self.base:
            # The private rows are gone as well; a fresh buffer must not overwrite rows that others share.
            kept = [piece for piece in self.shared if piece.start < length]
            last = kept[-1] if kept else None
            if last is not None:
                rows = length - last.start
                kept[-1] = Shared(last.buffers, last.start, rows, tuple(min(r, rows) for r in last.layer_rows))
            self.shared = tuple(kept)
            self._buffers, self._layers, self._capacity = [], [], 0

    @torch.inference_mode()
    def fork(self) -> KVCache:
        """A second cache with the same past. A long private part becomes a shared piece, a short one is copied.

        Freezing only what is at least half of what is shared already keeps the number of pieces logarithmic.
        """
        base, length = self.base, max(self.lengths)
        own = length - base
        if own >= max(SMALLEST, base // 2):
            present = tuple(max(0, n - base) for n in self.lengths)
            self.shared = (*self.shared, Shared(self._buffers, base, own, present))
            self._buffers, self._layers, self._capacity = [], [], 0
        other = KVCache(self.layout)
        other.shared, other.lengths, other.ran = self.shared, list(self.lengths), self.ran
        other.source = self.source
        if length > other.base:
            other._grow(max(own, SMALLEST))
            for (keys, values), (old_keys, old_values) in zip(other._buffers, self._buffers, strict=True):
                keys[:, :, :own] = old_keys[:, :, :own]
                values[:, :, :own] = old_values[:, :, :own]
        return other

    def release(self) -> None:
        """Give the memory back; the sequence is empty afterwards."""
        self.shared, self._buffers, self._layers, self._capacity = (), [], [], 0
        self.lengths = [0] * len(self.lengths)
        if self.source is not None:
            self.source = Source(self.source.ids)

    def private(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first `rows` private rows of a layer: keys and values (1, G, rows, d)."""
        keys, values = self._layers[layer]
        return keys[:, :, :rows], values[:, :, :rows]

    def piece(self, shared: Shared, layer: int) -> tuple[Tensor, Tensor]:
        """The rows of a shared piece in one layer: keys and values (1, G, rows, d)."""
        group, index = self.layout.slot[layer]
        rows = shared.layer_rows[layer]
        keys, values = shared.buffers[group]
        return keys[index : index + 1, :, :rows], values[index : index + 1, :, :rows]
