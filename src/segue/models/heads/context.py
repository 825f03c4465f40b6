"""What a run keeps for a drafter that attends: the base model's states behind its tokens, and its layer's rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.models.heads.base import DraftNetwork
from segue.models.heads.layer import Attention, Rows
from segue.models.lm import LM

SMALLEST = 64  # rows of a buffer


class Attending(DraftNetwork):
    """Base of networks whose one layer attends to the states behind all tokens that were read."""

    attention: Attention

    def rehearsed(self, lm: LM, tokens: int) -> tuple[Tensor, Rows]:
        """The last state (1, D) of a context of so many tokens, and its rows, for the clock: a round computes those of
        few tokens."""
        state = torch.zeros(1, self.shape.width, device=lm.device)
        entering = self.entering(lm, state, torch.zeros(1, dtype=torch.long, device=lm.device))
        keys, values = self.attention.rows(entering, range(1))
        return state, (keys.expand(-1, tokens, -1), values.expand(-1, tokens, -1))

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        """What enters the layer (..., N, D) for states (..., N, D) and the tokens (..., N) that follow them."""
        raise NotImplementedError


class Context:
    """States (S, D) and rows (H, S, C) of a text as far as it was read. Both grow at the end and can be cut back; rows
    are computed once each, when the drafter is asked."""

    def __init__(self, network: Any, lm: LM) -> None:
        self.network = network
        self.lm = lm
        self.length = 0  # tokens whose states are here
        self._known = 0  # of which the layer's rows are here
        self._states: Tensor | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @torch.inference_mode()
    def add(self, states: Tensor, length: int) -> None:
        """The states (n, D) of the last n of `length` tokens. Where some before them are missing nothing is kept: they
        are to be read again."""
        start = length - len(states)
        if start > self.length:
            return
        self.cut(start)
        self._states = _grown(self._states, states, start, 0)
        self.length = length

    def cut(self, length: int) -> None:
        """Forget what is behind so many tokens. The token that follows the last of them may be another one then."""
        if length < self.length:
            self.length, self._known = length, min(self._known, max(length - 1, 0))

    @property
    def last(self) -> Tensor:
        """(1, D), the state of the last token."""
        assert self._states is not None
        return self._states[self.length - 1 : self.length]

    @torch.inference_mode()
    def rows(self, ids: list[int]) -> Rows:
        """The layer's rows (H, S, C) of all S tokens; `ids` has one token more, the pending one."""
        if self._known < self.length:
            assert self._states is not None
            new = slice(self._known, self.length)
            following = torch.tensor(ids[self._known + 1 : self.length + 1], device=self._states.device)
            entering = self.network.entering(self.lm, self._states[new], following)
            keys, values = self.network.attention.rows(entering, range(self._known, self.length))
            self._keys = _grown(self._keys, keys, self._known, 1)
            self._values = _grown(self._values, values, self._known, 1)
            self._known = self.length
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, : self.length], self._values[:, : self.length]


def _grown(buffer: Tensor | None, new: Tensor, start: int, dim: int) -> Tensor:
    """The buffer with new rows from `start` on, doubled where they do not fit."""
    count = new.shape[dim]
    if buffer is None or buffer.shape[dim] < start + count:
        shape = list(new.shape)
        shape[dim] = max(SMALLEST, 2 * (start + count))
        larger = new.new_empty(shape)
        if buffer is not None:
            larger.narrow(dim, 0, start).copy_(buffer.narrow(dim, 0, start))
        buffer = larger
    buffer.narrow(dim, start, count).copy_(new)
    return buffer
