"""Key and value rows of one sequence: a chain of shared read-only pieces and a private tail in a slot of the arena.

Row i of a layer belongs to position i. Rows behind a layer's length are provisional: the last forward wrote them, and
only `commit` makes them part of the past. A layer that a forward skipped simply stays shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.models.transformers.arena import SHORTEST, Arena, Slot

Turn = Callable[[int, Tensor, Tensor], Tensor]  # layer, keys (1, G, k, d), their positions (k,) -> keys of 0 .. k - 1


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows [start, start + rows) that several sequences read and none writes. `rows` is this holder's view: after a
    rollback a holder may see fewer than the buffer has."""

    slot: Slot
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

    __slots__ = (
        "_layers",
        "_open",
        "_provisional",
        "arena",
        "dropped",
        "layout",
        "lengths",
        "ran",
        "seam",
        "shared",
        "slot",
        "source",
    )

    def __init__(self, arena: Arena) -> None:
        self.arena, self.layout = arena, arena.layout
        self.shared: tuple[Shared, ...] = ()
        self.lengths = [0] * len(self.layout.layers)  # committed rows of every layer, absolute
        self.ran: tuple[int, ...] = tuple(range(len(self.layout.layers)))  # layers of the last forward
        self.slot: Slot | None = None  # of the private rows
        self._layers: list[tuple[Tensor, Tensor]] = []  # of every layer its part (1, G, rows, d) of the slot
        self._provisional = 0  # rows that the last forward left behind the committed ones
        self._open = False  # those rows wait for the other layers (`reopen`)
        self.dropped = [0] * len(self.layout.layers)  # per layer: tokens of the text that a view has no rows of
        self.seam = 0  # tokens of the text when a view was taken: behind them no row is missing
        self.source: Source | None = None  # what the decoder of an encoder-decoder reads besides: forks share it

    @property
    def base(self) -> int:
        """Rows in shared pieces; private row 0 is position `base`."""
        return self.shared[-1].start + self.shared[-1].rows if self.shared else 0

    @property
    def private_bytes(self) -> int:
        return self._capacity * self.layout.bytes_per_row

    @property
    def _capacity(self) -> int:
        return 0 if self.slot is None else self.slot.slab.rows

    def reserve(self, length: int, new: int, layers: tuple[int, ...] | None, since: int = 0) -> None:
        """Make room for `new` provisional rows behind those of `length` committed tokens in the layers that will run;
        the first `since` of them are there already, and all of them in the layers of rows that were reopened."""
        ran = layers if layers is not None else tuple(range(len(self.lengths)))
        if self._open and self._provisional >= new and not set(ran) & set(self.ran):
            ran, since = tuple(sorted((*self.ran, *ran))), new
            self.ran = ran
        if since > (self._provisional if ran == self.ran else 0):
            raise ValueError(
                f"nodes before {since} were not scored by the last forward of this sequence in these layers"
            )
        self.ran = ran
        for layer in ran:
            held = self.lengths[layer] + self.dropped[layer]
            if held != length:
                raise ValueError(
                    f"layer {layer} holds {held} of {length} rows because earlier forwards skipped it; "
                    "roll the sequence back to the mark before they ran, or keep skipping that layer"
                )
        needed = max((self.lengths[layer] for layer in ran), default=0) - self.base + new
        if needed > self._capacity:
            self._grow(max(needed, 2 * self._capacity), since)
        self._provisional, self._open = new, False

    def _grow(self, capacity: int, since: int = 0) -> None:
        used = min(self._capacity, max(self.lengths) - self.base + since)
        slot = self.arena.take(capacity)
        if self.slot is not None and used > 0:
            slot.fill(self.slot, used)
        self._lie_in(slot)

    def _lie_in(self, slot: Slot) -> None:
        self.slot = slot
        self._layers = [
            (slot.buffers[group][0][index : index + 1], slot.buffers[group][1][index : index + 1])
            for group, index in self.layout.slot
        ]

    def append(self, layer: int, keys: Tensor, values: Tensor, since: int = 0) -> tuple[Tensor, Tensor]:
        """Write provisional rows (1, G, n, d) behind `since` others; returns the private rows so far, provisional ones
        included."""
        start = self.lengths[layer] - self.base + since
        end = start + keys.shape[2]
        own_keys, own_values = self._layers[layer]
        own_keys[:, :, start:end] = keys
        own_values[:, :, start:end] = values
        return own_keys[:, :, :end], own_values[:, :, :end]

    @torch.inference_mode()  # as in the forward: its buffers may only be written in that mode
    def commit(self, path: list[int]) -> None:
        """Keep the provisional rows numbered in `path`, in that order, in every layer that ran."""
        if path != list(range(len(path))):
            if any(self.dropped):  # layers of a view differ in length
                for layer in self.ran:
                    self._move(self._layers[layer], self.lengths[layer], path)
            else:
                assert self.slot is not None
                for pair in self.slot.buffers:
                    # Layers that did not run are moved along: rows behind their length mean nothing.
                    self._move(pair, self.lengths[self.ran[0]], path)
        for layer in self.ran:
            self.lengths[layer] += len(path)
        self._provisional, self._open = 0, False

    def _move(self, pair: tuple[Tensor, Tensor], length: int, path: list[int]) -> None:
        start = length - self.base
        rows = [start + node for node in path]
        for part in pair:
            part[:, :, start : start + len(path)] = part[:, :, rows]

    def truncate(self, length: int) -> None:
        """Forget every row of position `length` and behind, in every layer."""
        if length < self.seam:
            raise ValueError(f"a view taken at {self.seam} tokens cannot be cut to {length}: take another one")
        self._provisional, self._open = 0, False
        self.lengths = [min(own, length - left_out) for own, left_out in zip(self.lengths, self.dropped, strict=True)]
        if length < self.base:
            # The private rows are gone as well; a fresh buffer must not overwrite rows that others share.
            kept = [piece for piece in self.shared if piece.start < length]
            last = kept[-1] if kept else None
            if last is not None:
                rows = length - last.start
                kept[-1] = Shared(last.slot, last.start, rows, tuple(min(r, rows) for r in last.layer_rows))
            self.shared = tuple(kept)
            self.slot, self._layers = None, []

    def reopen(self, length: int) -> None:
        """Back to a length, but the rows that the layers of the last forward have behind it wait there for one forward
        of the other layers. Forgotten where rows are shared there: that forward is then refused."""
        rows = self.lengths[self.ran[0]] - length
        shared = length < self.base
        self.truncate(length)
        if not shared and rows > 0:
            self._provisional, self._open = rows, True

    @torch.inference_mode()
    def fork(self) -> KVCache:
        """A second cache with the same past. A long private part becomes a shared piece, a short one is copied.

        Freezing only what is at least half of what is shared already keeps the number of pieces logarithmic.
        """
        base, length = self.base, max(self.lengths)
        own = length - base
        if self.slot is not None and own >= max(SHORTEST, base // 2):
            present = tuple(max(0, n - base) for n in self.lengths)
            self.shared = (*self.shared, Shared(self.slot, base, own, present))
            self.slot, self._layers = None, []
        other = KVCache(self.arena)
        other.shared, other.lengths, other.ran = self.shared, list(self.lengths), self.ran
        other.dropped, other.seam = list(self.dropped), self.seam
        other.source = self.source
        if length > other.base:
            assert self.slot is not None
            slot = self.arena.take(own)
            slot.fill(self.slot, own)
            other._lie_in(slot)
        return other

    @torch.inference_mode()
    def copy(self, length: int, still: bool = False) -> KVCache:
        """A cache with the first `length` rows: shared pieces stay shared, private rows are copied. `still`: nobody
        will add to it, so it has no room for more, nor a place beside those that are read together."""
        other = KVCache(self.arena)
        other.source, other.shared = self.source, self.shared
        other.lengths = [min(own, self.base) for own in self.lengths]
        if length <= self.base:
            other.truncate(length)
            return other
        if still:
            other._lie_in(self.arena.alone(length - self.base))
        other.follow(self, self.base, length)
        return other

    def release(self) -> None:
        """Give the memory back; the sequence is empty afterwards."""
        self.shared, self.slot, self._layers = (), None, []
        self.lengths = [0] * len(self.lengths)
        self.dropped = [0] * len(self.lengths)
        self.seam = self._provisional = 0
        if self.source is not None:
            self.source = Source(self.source.ids)

    def past(self, layer: int, rows: int) -> list[tuple[Tensor, Tensor]]:
        """The first `rows` rows of a layer as parts: keys and values (1, G, part, d) of the shared pieces, then of the
        private rows."""
        parts = [self.piece(piece, layer) for piece in self.shared]
        return [*parts, self.private(layer, rows - self.base)] if rows > self.base else parts

    @torch.inference_mode()
    def view(self, kept: Mapping[int, Tensor], turn: Turn | None = None) -> KVCache:
        """A copy that has only some rows: of the layers in `kept` those rows (k,) or (G, k), ascending; of other layers
        all. Rows keep their positions, so that later ones follow where the text goes on. With `turn` the rows move up
        instead: keys (1, G, k, d) of `positions` are turned to positions 0 .. k - 1, and nothing counts as left out.
        """
        other = KVCache(self.arena)
        other.ran, other.source = self.ran, self.source
        other._grow(max(self.lengths))
        for layer, length in enumerate(self.lengths):
            if length == 0:
                continue
            parts = self.past(layer, length)
            keys, values = (torch.cat([part[i] for part in parts], 2) for i in (0, 1))
            rows = kept.get(layer)
            if rows is not None:
                rows = rows.to(keys.device)
                index = rows.expand(keys.shape[1], -1) if rows.ndim == 1 else rows
                keys, values = (
                    part.gather(2, index[None, :, :, None].expand(1, -1, -1, part.shape[-1])) for part in (keys, values)
                )
                if turn is not None:
                    keys = turn(layer, keys, index[0])
                else:
                    other.dropped[layer] = length - keys.shape[2]
                    other.seam = length
            count = other.lengths[layer] = keys.shape[2]
            own_keys, own_values = other._layers[layer]
            own_keys[:, :, :count] = keys
            own_values[:, :, :count] = values
        return other

    @torch.inference_mode()
    def follow(self, other: KVCache, start: int, stop: int) -> None:
        """Take over the rows of positions [start, stop) from another cache of the same text, behind the own ones."""
        self._provisional = 0
        for layer, (length, left_out) in enumerate(zip(self.lengths, self.dropped, strict=True)):
            if length + left_out != start:
                raise ValueError(
                    f"layer {layer} ends at position {length + left_out}, so rows from {start} do not follow"
                )
        need = max(self.lengths) + stop - start - self.base
        if need > self._capacity:
            self._grow(max(need, 2 * self._capacity))
        for layer, length in enumerate(self.lengths):
            own_keys, own_values = self._layers[layer]
            place = 0  # of the part's first row; only the new rows are touched, however long the text is
            for keys, values in other.past(layer, stop):
                first, last = max(start - place, 0), keys.shape[2]
                at = length - self.base + place + first - start
                if first < last:
                    own_keys[:, :, at : at + last - first] = keys[:, :, first:last]
                    own_values[:, :, at : at + last - first] = values[:, :, first:last]
                place += last
            self.lengths[layer] = length + stop - start

    def private(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first `rows` private rows of a layer: keys and values (1, G, rows, d)."""
        keys, values = self._layers[layer]
        return keys[:, :, :rows], values[:, :, :rows]

    def piece(self, shared: Shared, layer: int) -> tuple[Tensor, Tensor]:
        """The rows of a shared piece in one layer: keys and values (1, G, rows, d)."""
        group, index = self.layout.slot[layer]
        rows = shared.layer_rows[layer]
        keys, values = shared.slot.buffers[group]
        return keys[index : index + 1, :, :rows], values[index : index + 1, :, :rows]
