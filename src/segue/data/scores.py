"""What a forward must compute, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Distribution = Callable[[int], Tensor | None]  # node -> (V,) probabilities after it; None where they are not known yet


@dataclass(frozen=True, slots=True)
class Want:
    """What a forward must compute. Nothing is computed that nobody wants.

    Hidden states are numbered by the layers that run: 0 is what enters the first of them, i the output of the i-th, -1
    the last one after the norm (without layers that is the norm alone).
    """

    logits: Literal["all", "last", "none"] | tuple[int, ...] = "all"  # nodes whose logits rows come back
    topk: int = 0  # ids of the k largest logits of every node
    hidden: tuple[int, ...] = ()  # states of every new node
    attention: tuple[tuple[int, ...], tuple[int, ...] | None] | None = None  # (layers, nodes or all): weights over rows
    layers: tuple[int, ...] | None = None  # run only these layers
    since: int = 0  # nodes before this one were scored by the sequence's last forward and lie there still
    states: Tensor | None = field(default=None, compare=False)  # (n, D) what enters the first layer that runs

    @classmethod
    def join(cls, wants: Iterable[Want]) -> Want:
        """What several drafters want of one forward, beside the logits."""
        wants = list(wants)
        watched = {want.attention for want in wants} - {None}
        if len(watched) > 1:
            raise ValueError("two drafters that watch the target's attention cannot be fused: hold one of another kind")
        hidden = sorted({state for want in wants for state in want.hidden})
        return cls(
            topk=max((want.topk for want in wants), default=0),
            hidden=tuple(hidden),
            attention=next(iter(watched), None),
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes besides logits, in the words of a card's needs."""
        asked = {
            "hidden states": self.hidden,
            "attention weights": self.attention is not None,
            "a choice of layers": self.layers is not None or self.states is not None,
        }
        return tuple(what for what, wanted in asked.items() if wanted)

    @property
    def kind(self) -> tuple[tuple[int, ...] | None, bool]:
        """What the items of one forward must have in common: the layers that run, and whether states are given."""
        return self.layers, self.states is not None

    def rows(self, n: int) -> list[int]:
        """The nodes of an n-node tree whose logits are needed, in order."""
        if self.topk or self.logits == "all":
            return list(range(self.since, n))
        if self.logits == "last":
            return [n - 1]
        return [] if self.logits == "none" else sorted(node % n for node in self.logits)


class PackedLogits:
    """Logits of all rows of one forward (R, V); the arg-max of the whole pack is taken once, when first asked for."""

    __slots__ = ("_top", "logits")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._top: tuple[list[float], list[int]] | None = None

    def top(self) -> tuple[list[float], list[int]]:
        """Largest value and its index per row. The maximum propagates NaN, so it doubles as the health check."""
        if self._top is None:
            if self.logits.device.type == "cpu" and self.logits.dtype in (torch.float32, torch.float64):
                rows = self.logits.numpy()  # numpy's arg-max is some ten times as fast as PyTorch's on a CPU
                best = rows.argmax(-1)
                self._top = rows[range(len(best)), best].tolist(), best.tolist()
            else:
                values, ids = self.logits.max(-1)
                self._top = values.tolist(), ids.tolist()
        return self._top


@dataclass(slots=True)
class Scores:
    """What a forward gave one tree."""

    packed: PackedLogits
    start: int  # this item's first row in the pack
    nodes: list[int]  # node of every row, ascending
    topk: Tensor | None = None  # (n, k) token ids
    hidden: dict[int, Tensor] = field(default_factory=dict)  # state -> (n, D)
    attention: dict[int, Tensor] = field(default_factory=dict)  # layer -> (H, nodes wanted, rows)

    @property
    def logits(self) -> Tensor:
        """(R, V), one row for each node of `nodes`."""
        return self.packed.logits[self.start : self.start + len(self.nodes)]

    def row(self, node: int) -> Tensor:
        """(V,) logits after `node`; negative numbers count from the last row."""
        if node < 0:
            return self.packed.logits[self.start + len(self.nodes) + node]
        index = node if self.nodes[-1] == len(self.nodes) - 1 else self.nodes.index(node)
        return self.packed.logits[self.start + index]

    def argmax(self) -> list[int]:
        """The most likely token after each node of `nodes`."""
        return self.packed.top()[1][self.start : self.start + len(self.nodes)]

    def finite(self) -> bool:
        values = self.packed.top()[0][self.start : self.start + len(self.nodes)]
        return all(v - v == 0.0 for v in values)
