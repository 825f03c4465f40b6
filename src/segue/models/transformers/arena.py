"""Where cache rows lie: the private rows of many sequences side by side, so that one attention call can read them all.

A slab holds equally long slots, layer by layer. It is made when no slab of that length has a free slot, and its memory
goes back once nobody holds a slot of it: pages that no slot was taken of were never touched.
"""

from __future__ import annotations

import heapq
import threading
from weakref import WeakSet

from segue.models.transformers.layout import Layout

SLOTS = 32  # of a slab at most
BYTES = 1 << 28  # of a slab at most, unless one slot is larger
SHORTEST = 64  # rows of a slot


class Slab:
    """Slots of one length. Buffers of a group: keys (L, slots, G, rows, d) and values (L, slots, G, rows, d')."""

    def __init__(self, layout: Layout, rows: int, slots: int) -> None:
        self.layout, self.rows, self.slots = layout, rows, slots
        self.buffers = layout.empty(rows, slots)
        self._free = list(range(slots))

    @property
    def used(self) -> int:
        return self.slots - len(self._free)

    def take(self) -> Slot:
        """The first free slot, of zeros where others lie beside it: what is masked has to be finite."""
        slot = Slot(self, heapq.heappop(self._free))
        if self.slots > 1:
            for pair in slot.buffers:
                for part in pair:
                    part.zero_()
        return slot

    def give(self, index: int) -> None:
        heapq.heappush(self._free, index)


class Slot:
    """Rows of one sequence in every layer; given back when nobody holds it any more. Buffers of a group: keys (L, G,
    rows, d) and values (L, G, rows, d')."""

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab, self.index = slab, index
        self.buffers = [(keys[:, index], values[:, index]) for keys, values in slab.buffers]

    def fill(self, other: Slot, rows: int) -> None:
        """Take over the first rows of another slot in every layer."""
        for own_pair, other_pair in zip(self.buffers, other.buffers, strict=True):
            for own, theirs in zip(own_pair, other_pair, strict=True):
                own[:, :, :rows] = theirs[:, :, :rows]

    def __del__(self) -> None:
        self.slab.give(self.index)


class Arena:
    """The slabs of a model."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._slabs: dict[int, WeakSet[Slab]] = {}
        self._lock = threading.Lock()

    def take(self, rows: int) -> Slot:
        """A slot of at least so many rows: of the fullest slab that has one. Where two would be too large for a slab,
        one that lies alone."""
        round_rows = max(SHORTEST, 1 << (rows - 1).bit_length())
        slots = min(BYTES // max(round_rows * self.layout.bytes_per_row, 1), SLOTS)
        if slots < 2:
            return self.alone(rows)
        with self._lock:
            slabs = self._slabs.setdefault(round_rows, WeakSet())
            slab = max((s for s in slabs if s.used < s.slots), key=lambda s: s.used, default=None)
            if slab is None:
                slab = Slab(self.layout, round_rows, slots)
                slabs.add(slab)
            return slab.take()

    def alone(self, rows: int) -> Slot:
        """A slot of exactly so many rows, beside which nothing lies."""
        return Slab(self.layout, rows, 1).take()
