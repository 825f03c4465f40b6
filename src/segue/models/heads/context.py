"""What a run keeps for a drafter that attends: the base model's states behind its tokens, and its layer's rows."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from segue.models.heads.base import DraftNetwork
from segue.models.heads.layer import Attention, Rows
from segue.models.heads.lean import LeanAttention, product
from segue.models.lm import LM
from segue.models.transformers.quantized import Product

SMALLEST = 64  # rows of a buffer


class Attending(DraftNetwork):
    """Base of networks whose one layer attends to the states behind all tokens that were read."""

    attention: Attention
    _lean: Any = None

    def lean(self, lm: LM) -> Any:
        """What drafts of it beside `lm`. Made when first asked for, and anew after training."""
        if self._lean is None:
            with torch.no_grad():
                self._lean = self.made_lean(drafting_dtype(self, lm))
                if 0 < self.shortlist < lm.vocab_size:
                    self._lean.shorten(lm, self.shortlist)
        return self._lean

    def made_lean(self, dtype: torch.dtype) -> Any:
        return Lean(self, dtype)

    def rehearsed(self, lm: LM, tokens: int) -> tuple[Any, Context]:
        """The drafting form and the context of a text of so many tokens, for the clock: all but the last are read."""
        context, ids = Context(self, lm), [0] * (tokens + 1)
        state = torch.zeros(1, self.shape.width, dtype=lm.dtype, device=lm.device)
        context.add(state.expand(tokens - 1, -1), tokens - 1)
        context.read(ids[:tokens])
        context.add(state, tokens)
        return context.lean, context

    def train(self, mode: bool = True) -> Self:
        if mode or self.training:  # what does not learn stays as it is
            self._lean = None
        return super().train(mode)

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        """What enters the layer (..., N, D) for states (..., N, D) and the tokens (..., N) that follow them."""
        raise NotImplementedError


class Lean:
    """The parts that every attending drafter drafts with."""

    def __init__(self, network: Attending, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.attention = LeanAttention(network.attention, dtype)
        self._short: Product | None = None

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        """As the network's own, in the precision of drafts."""
        return states.to(self.dtype)

    def shorten(self, lm: LM, tokens: int) -> None:
        """Guess among so many first tokens only, the commonest ones of a vocabulary that was made by merging pairs: the
        head is the dearest part of a small draft."""
        one_hot = torch.eye(lm.width, dtype=lm.dtype, device=lm.device)
        self._short = product(lm.head(one_hot)[:, :tokens].t().contiguous(), self.dtype)

    def logits(self, lm: LM, states: Tensor) -> Tensor:
        """(N, V), or of the first tokens alone, of states (N, D) behind the last norm."""
        return lm.head(states) if self._short is None else self._short(states)


def drafting_dtype(network: DraftNetwork, lm: LM) -> torch.dtype:
    """That of the base model where it is narrow: its weights take half the time on their way to the processor."""
    return lm.dtype if lm.dtype in (torch.bfloat16, torch.float16) else network.dtype


class Context:
    """States (S, D) and rows (G, S, C) of a text as far as it was read. Both grow at the end and can be cut back; rows
    are computed once each, when the drafter is asked."""

    def __init__(self, network: Any, lm: LM) -> None:
        self.network = network
        self.lean = network.lean(lm)
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
    def read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """See that the rows of all S tokens are here; `ids` has one token more, the pending one. Gives of the last
        token what entered the layer (1, D), and its queries (H, 1, C)."""
        assert self._states is not None
        start = min(self._known, self.length - 1)
        following = torch.tensor(ids[start + 1 : self.length + 1], device=self._states.device)
        entering = self.lean.entering(self.lm, self._states[start : self.length], following)
        queries, keys, values = self.lean.attention.project(entering, range(start, self.length))
        self.put(start, keys, values)
        self._known = self.length
        return entering[-1:], queries[:, -1:]

    @torch.inference_mode()
    def put(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Rows (G, n, C) from a place on; behind the text they are a draft's, and the next ones take their place."""
        self._keys = _grown(self._keys, keys, start, 1)
        self._values = _grown(self._values, values, start, 1)

    def seen(self, count: int, first: int = 0) -> Rows:
        """The first `count` rows (G, S, C), without those before `first`."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, first:count], self._values[:, first:count]

    def rows(self, ids: list[int]) -> Rows:
        """The layer's rows (G, S, C) of all S tokens; `ids` has one token more, the pending one."""
        if self._known < self.length:
            self.read(ids)
        return self.seen(self.length)


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
