"""What a model keeps for each token: the shapes of its cache, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def empty(self, rows: int, slots: int) -> list[tuple[Tensor, Tensor]]:
        """Per group the keys (L, slots, G, rows, d) and values (L, slots, G, rows, d')."""
        buffers = []
        for group, shape in enumerate(self.groups):
            count = sum(1 for g, _ in self.slot if g == group)
            size = (count, slots, shape.kv_heads, rows)
            keys = torch.empty(*size, shape.key_width, dtype=shape.dtype, device=shape.device)
            values = torch.empty(*size, shape.value_width, dtype=shape.dtype, device=shape.device)
            buffers.append((keys, values))
        return buffers
