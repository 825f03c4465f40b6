"""An enumerable language model: a table of next-token logits, behind the same interface as a real one.

Small enough that every distribution over outputs can be written down, so the laws have an exact oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from segue.data import PackedLogits, Scores, Want
from segue.models.lm import LM, Ask
from segue.models.sequence import Sequence


class ToyPast:
    """The toy reads its context from the tokens, so there is nothing to keep but the count, which catches misuse."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    def commit(self, path: list[int]) -> None:
        self.length += len(path)

    def truncate(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"cannot truncate {self.length} rows to {length}")
        self.length = length

    def fork(self) -> ToyPast:
        return ToyPast(self.length)

    def view(self, kept: Mapping[int, Tensor], turn: Any = None) -> ToyPast:
        return ToyPast(len(kept[0]) if turn is not None else self.length)

    def follow(self, other: ToyPast, start: int, stop: int) -> None:
        self.length = stop

    def release(self) -> None:
        self.length = 0


class ToyLM(LM):
    """Next-token logits depend on the last `order` tokens through a seeded random table (V ** order, V), float64."""

    def __init__(
        self, vocab_size: int = 4, order: int = 2, seed: int = 0, *, scale: float = 1.5, eos: int | None = None
    ) -> None:
        super().__init__()
        if vocab_size < 2 or order < 1:
            raise ValueError(f"a toy of {vocab_size} tokens and order {order}: at least 2 tokens and order 1")
        generator = torch.Generator().manual_seed(seed)
        self.name = f"toy-{vocab_size}-{order}-{seed}"
        self.backend, self.precision = "toy", "float64"
        self.vocab_size = vocab_size
        self.order = order
        self.context_length = 4096
        self.layers = 4  # which all compute nothing
        self.eos_ids = frozenset() if eos is None else frozenset([eos])
        self.forwards = 0
        size = (vocab_size**order, vocab_size)
        self.table = scale * torch.randn(size, generator=generator, dtype=torch.float64)

    def turn(self) -> Any:
        return lambda layer, keys, places: keys

    def sequence(self) -> Sequence:
        return Sequence(self, ToyPast())

    def logits_after(self, context: Seq[int]) -> Tensor:
        """(V,) logits after a context; a short one is padded with token 0 in front."""
        index = 0
        for token in ([0] * self.order + list(context))[-self.order :]:
            index = index * self.vocab_size + token
        return self.table[index]

    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        self.forwards += 1
        rows: list[Tensor] = []
        spans: list[tuple[int, list[int], Want]] = []
        for sequence, tree, want in asks:
            if not isinstance(sequence.past, ToyPast) or sequence.past.length != len(sequence):
                raise ValueError("the sequence's past does not match its tokens")
            nodes = want.rows(len(tree))
            spans.append((len(rows), nodes, want))
            for node in nodes:
                rows.append(self.logits_after(sequence.tokens + [tree.tokens[i] for i in tree.path(node)]))
            sequence.scored = tree
        packed = PackedLogits(torch.stack(rows) if rows else torch.empty(0, self.vocab_size))
        scores = []
        for start, nodes, want in spans:
            mine = Scores(packed, start, nodes)
            if want.topk:
                mine.topk = mine.logits.topk(min(want.topk, self.vocab_size)).indices
            scores.append(mine)
        return scores
