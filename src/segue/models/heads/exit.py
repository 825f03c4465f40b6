"""One layer on top of a model's first layers, which says early what the model will say (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.context import Attending
from segue.models.heads.layer import Attention, Rows, SwiGLU, behind
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
        chain: Rows | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """States (..., N, D) behind layer N, at N positions or all at one, with the rows of what stands before ->
        states of the last layer as it would be, normalised (..., N, D)."""
        states = self.attention(self.at_home(states), positions, context, mask, chain)
        out: Tensor = self.norm(states + self.feed(self.before(states)))
        return out

    def step(self, state: Tensor, position: int, context: Rows, chain: Rows | None) -> tuple[Tensor, Rows]:
        """One drafted token: its state (1, D) behind layer N gives the state (1, D) for the head, and the rows of what
        was drafted so far with its own."""
        place = range(position, position + 1)
        own = behind(chain, self.attention.rows(self.at_home(state), place))
        return self(state, place, context, own), own

    def rehearse(self, lm: LM) -> None:
        states = torch.zeros(REHEARSED, self.shape.width, device=lm.device)
        context = self.attention.rows(self.at_home(states), range(REHEARSED))
        lm.head(self.step(states[:1], REHEARSED, context, None)[0])

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
