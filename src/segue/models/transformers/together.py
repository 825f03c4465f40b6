"""One attention call for many sequences: rows whose caches lie in neighbouring slots of a slab are a batch of it."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segue.models.transformers.parts import Form, additive, attended, part

if TYPE_CHECKING:
    from segue.models.transformers.attention import Item

MOST = 16  # rows of an item: padded to the widest of a batch, larger ones are better off by themselves
GAP = 2  # slots from one member of a batch to the next, at most: those between are computed for nothing


def batches(items: list[Item]) -> tuple[list[list[Item]], list[Item]]:
    """Items that can be attended together, each batch in the order of their rows, and those that are left."""
    alike: dict[tuple[int, bool], list[tuple[int, Item]]] = defaultdict(list)
    left = []
    for item in items:
        slot = item.cache.slot
        if slot is None or slot.slab.slots == 1 or item.stop - item.start > MOST or not item.ordinary:
            left.append(item)
        else:
            alike[id(slot.slab), item.stop - item.start > 1].append((slot.index, item))
    found = []
    for members in alike.values():
        members.sort(key=lambda member: member[0])
        runs = [[members[0][1]]]
        for (before, _), (index, item) in pairwise(members):
            if index - before > GAP:
                runs.append([])
            runs[-1].append(item)
        left += [run[0] for run in runs if len(run) == 1]
        found += [sorted(run, key=lambda item: item.start) for run in runs if len(run) > 1]
    return found, left


class Together:
    """A batch of items for the layers of one forward. Sequence b of it is slot `first` + b, node j of a sequence its
    j-th new row, padded to `nodes`."""

    def __init__(self, items: list[Item], device: torch.device) -> None:
        slot = items[0].cache.slot
        assert slot is not None
        self.items, self._slab = items, slot.slab
        indices = [item.slot_index for item in items]
        self.first, last = min(indices), max(indices)
        self.width, self.nodes = last - self.first + 1, max(item.stop - item.start for item in items)
        self.rows = [row for item in items for row in range(item.start, item.stop)]
        at: list[int] = []  # of every row its place among the padded ones
        slots: list[int] = []
        places: list[int] = []
        self._reach = 0
        for index, item in zip(indices, items, strict=True):
            n, begin = item.stop - item.start, item.past - item.cache.base
            at += range((index - self.first) * self.nodes, (index - self.first) * self.nodes + n)
            slots += [index] * n
            places += range(begin + item.since, begin + item.since + n)
            self._reach = max(self._reach, begin + len(item.tree))
        padded = [0] * (self.width * self.nodes)
        for place, row in zip(at, self.rows, strict=True):
            padded[place] = row
        tensors = torch.tensor([self.rows, at, slots, places], device=device)
        self._rows, self._at, self._slots, self._places = _index(self.rows, tensors[0]), *tensors[1:]
        self._padded = _index(padded, torch.tensor(padded, device=device))
        self._in_order = at == list(range(len(padded)))  # nothing is padded and nothing moves
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form, whole: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Append the new rows and attend over the private ones: output (1, H, rows, d') and, unless that is the
        `whole`, log-sum-exp (1, H, rows)."""
        keys, values = self._append(layer, key, value)
        q = query[0].transpose(0, 1)[self._padded]
        q = q.view(self.width, self.nodes, *q.shape[1:]).transpose(1, 2)
        mask = self._mask(form.window, q, q.shape[1] // keys.shape[1])
        if whole:
            return self._back(attended(q, keys, values, mask, form)), None
        out, lse = part(q, keys, values, mask, form)
        return self._back(out), self._back(lse[..., None])[..., 0]

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        group, index = self._slab.layout.slot[layer]
        found = []
        for buffers, new in zip(self._slab.buffers[group], (key, value), strict=True):
            rows = buffers[index]
            rows[self._slots, :, self._places] = new[0].transpose(0, 1)[self._rows]
            found.append(rows[self.first : self.first + self.width, :, : self._reach])
        return found[0], found[1]

    def _back(self, x: Tensor) -> Tensor:
        """From (B, H, nodes, d) to the rows (1, H, rows, d)."""
        flat = x.transpose(1, 2).reshape(self.width * self.nodes, x.shape[1], x.shape[3])
        return (flat if self._in_order else flat[self._at]).transpose(0, 1)[None]

    def _mask(self, window: int | None, like: Tensor, heads: int) -> Tensor:
        """Additive (B, 1, nodes, rows), repeated for so many heads where there are more nodes than one. Built once for
        all alike layers of a forward."""
        if window is not None and not any(item.windowed(window) for item in self.items):
            window = None
        key = window, heads
        if key not in self._masks:
            if window is None and all(len(item.tree) == 1 for item in self.items):
                reach = torch.ones(self.width, dtype=torch.long)
                reach[[item.slot_index - self.first for item in self.items]] = torch.tensor(
                    [item.past - item.cache.base + 1 for item in self.items]
                )
                visible = (torch.arange(self._reach) < reach[:, None])[:, None]
            else:
                visible = torch.zeros(self.width, self.nodes, self._reach, dtype=torch.bool)
                for item in self.items:
                    own = item.visible(item.past, item.cache.base, window)
                    visible[item.slot_index - self.first, : own.shape[0], : own.shape[1]] = own
                visible[..., 0] |= ~visible.any(-1)  # what is padded sees something: its numbers are not used
            mask = additive(visible, like)
            self._masks[key] = (mask.repeat(1, heads, 1) if self.nodes > 1 else mask)[:, None]
        return self._masks[key]


def _index(numbers: list[int], tensor: Tensor) -> Tensor | slice:
    """Of numbers that follow one another a slice, which copies nothing."""
    first = numbers[0]
    consecutive = numbers == list(range(first, first + len(numbers)))
    return slice(first, first + len(numbers)) if consecutive else tensor
