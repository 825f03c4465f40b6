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
    """The toy reads its context from the tokens, so there is nothing to keep but the count, which catches misuse, and
    whether it is a view that lacks rows."""

    def __init__(self, length: int = 0, partial: bool = False) -> None:
        self.length = length
        self.partial = partial
        self.open = False  # the first layers have read what comes next

    def commit(self, path: list[int]) -> None:
        self.length += len(path)
        self.open = False

    def truncate(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"cannot truncate {self.length} rows to {length}")
        self.length = length
        self.open = False

    def reopen(self, length: int) -> None:
        self.truncate(length)
        self.open = True

    def fork(self) -> ToyPast:
        return ToyPast(self.length, self.partial)

    def copy(self, length: int, still: bool = False) -> ToyPast:
        return ToyPast(length, self.partial)

    def view(self, kept: Mapping[int, Tensor], turn: Any = None) -> ToyPast:
        partial = any(rows.shape[-1] < self.length for rows in kept.values())
        return ToyPast(kept[0].shape[-1] if turn is not None else self.length, partial)

    def follow(self, other: ToyPast, start: int, stop: int) -> None:
        self.length = stop

    def release(self) -> None:
        self.length = 0


class ToyLM(LM):
    """Next-token logits depend on the last `order` tokens through a seeded random table (V ** order, V), float64.

    Its layers compute nothing, but each one that is left out, and a past that lacks rows, disturbs the logits, so that
    drafts of its own differ from it. Hidden states say which the last tokens were.
    """

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
        self.layers = 8
        self.eos_ids = frozenset() if eos is None else frozenset([eos])
        self.forwards = 0
        size = (vocab_size**order, vocab_size)
        self.table = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        self.width, self.dtype = len(self.table), torch.float64
        self.disturbance = scale * torch.randn(size, generator=generator, dtype=torch.float64)

    def embed(self, tokens: Tensor) -> Tensor:
        return torch.eye(self.vocab_size, self.width, dtype=torch.float64)[tokens]

    def head(self, states: Tensor) -> Tensor:
        return states.double() @ self.table

    def turn(self) -> Any:
        return lambda layer, keys, places: keys

    def sequence(self) -> Sequence:
        return Sequence(self, ToyPast())

    def logits_after(self, context: Seq[int]) -> Tensor:
        """(V,) logits after a context; a short one is padded with token 0 in front."""
        return self.table[self._index(context)]

    def _index(self, context: Seq[int]) -> int:
        index = 0
        for token in ([0] * self.order + list(context))[-self.order :]:
            index = index * self.vocab_size + token
        return index

    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        self.forwards += 1
        rows: list[Tensor] = []
        spans: list[tuple[int, list[int], Want, Tensor, int]] = []
        for sequence, tree, want in asks:
            if not isinstance(sequence.past, ToyPast) or sequence.past.length != len(sequence):
                raise ValueError("the sequence's past does not match its tokens")
            nodes = want.rows(len(tree))
            missing = 0 if want.layers is None or sequence.past.open else self.layers - len(want.layers)
            share = missing / self.layers + 0.5 * sequence.past.partial
            contexts = [sequence.tokens + [tree.tokens[i] for i in tree.path(node)] for node in range(len(tree))]
            places = [self._index(context) for context in contexts]
            if want.states is not None:  # what enters says itself which the last tokens were
                places[want.since :] = want.states.argmax(-1).tolist()
            states = torch.eye(len(self.table), dtype=torch.float64)[places[want.since :]]
            spans.append((len(rows), nodes, want, states, len(sequence) + len(tree)))
            own = self.table[places] if want.states is not None else torch.stack(list(map(self.logits_after, contexts)))
            rows += [own[node] + share * self.disturbance[places[node]] for node in nodes]
            sequence.scored = tree
        packed = PackedLogits(torch.stack(rows) if rows else torch.empty(0, self.vocab_size))
        scores = []
        for start, nodes, want, states, seen in spans:
            mine = Scores(packed, start, nodes, hidden=dict.fromkeys(want.hidden, states))
            if want.attention is not None:
                layers, asked = want.attention
                mine.attention = {
                    layer: torch.full((1, seen if asked is None else len(asked), seen), 1 / seen) for layer in layers
                }
            if want.topk:
                mine.topk = mine.logits.topk(min(want.topk, self.vocab_size)).indices
            scores.append(mine)
        return scores
