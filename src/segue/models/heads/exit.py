"""One layer on top of a model's first layers, which says early what the model will say (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.context import Attending, Context, Lean
from segue.models.heads.layer import Attention, Rows, SwiGLU
from segue.models.heads.lean import LeanExperts, normed
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM

REHEARSED = 64  # tokens of the context in which a round is timed
SHARE = 3  # by default the first third of the layers is read


@dataclass(frozen=True)
class Shape(base.Shape):
    exit: int = 1  # N: layers of the model that run before it
    attention_heads: int = 4
    inner: int = 512  # width of its feed-forward network


class ExitLayer(Attending):
    """A transformer layer over the states behind the model's layer N, and a norm; the model's own head follows."""

    kind = "eesd"
    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.attention = Attention(shape.width, shape.attention_heads)
        self.before = nn.RMSNorm(shape.width, eps=1e-6)
        self.feed = SwiGLU(shape.width, shape.inner)
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)

    @classmethod
    def fresh(cls, lm: LM, seed: int = 0, **numbers: int) -> Self:
        network = super().fresh(lm, seed, **({"exit": max(1, lm.layers // SHARE)} | numbers))
        if network.shape.exit >= lm.layers:
            raise ValueError(
                f"exit={network.shape.exit} is not allowed: {lm.name} has {lm.layers} layers, and some must be left "
                "for the model itself"
            )
        return network

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.shape.exit,)

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        return self.at_home(states)

    def forward(
        self,
        states: Tensor,
        positions: range,
        context: Rows,
        mask: Tensor | None = None,
    ) -> Tensor:
        """States (..., N, D) behind layer N, at N positions or all at one, with the rows of what stands before ->
        states of the last layer as it would be, normalised (..., N, D)."""
        states = self.attention(self.at_home(states), positions, context, mask)
        out: Tensor = self.norm(states + self.feed(self.before(states)))
        return out

    def made_lean(self, dtype: torch.dtype) -> LeanExit:
        return LeanExit(self, dtype)

    def passes(self, depth: int) -> int:
        return depth

    def rehearse(self, lm: LM, passes: int) -> None:
        lean, context = self.rehearsed(lm, REHEARSED)
        context.rows([0] * (REHEARSED + 1))
        for place in range(REHEARSED, REHEARSED + passes):
            lean.logits(lm, lean.step(context, context.last, place))

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        marks = Marks()
        states, length = self.at_home(lesson.states[self.shape.exit]), lesson.ids.shape[1]
        places = torch.arange(length, device=states.device)
        span = range(length)
        rows = self.attention.rows(states, span)
        features = self(states, span, rows, mask=places[:, None] >= places)
        entries, positions, tokens = lesson.ahead(1)
        marks.guess(lm.head(features[entries, positions]), tokens)
        return marks


class LeanExit(Lean):
    """Drafts as the network does that it was made from."""

    def __init__(self, network: ExitLayer, dtype: torch.dtype) -> None:
        super().__init__(network, dtype)
        self._feed = LeanExperts([network.feed], network.before, None, dtype)
        self._weight, self._eps = network.norm.weight.to(dtype), network.norm.eps

    def step(self, context: Context, state: Tensor, position: int) -> Tensor:
        """One drafted token: its state (1, D) behind layer N gives the state (1, D) for the head. Its row goes behind
        those of the text and of the tokens that were drafted before it, all of which it sees."""
        entering = state.to(self.dtype)
        queries, keys, values = self.attention.project(entering, range(position, position + 1))
        context.put(position, keys, values)
        states = self.attention.find(entering, queries, *context.seen(position + 1), None)
        states = self._feed.leave(states, self._feed.enter(states)[0])
        return normed(states, self._eps) * self._weight
