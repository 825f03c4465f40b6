"""Output heads for the tokens behind the next one (Stern et al. 2018, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.base import DraftNetwork
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM


@dataclass(frozen=True)
class Shape(base.Shape):
    heads: int = 4  # beside the model's own: the block has one token more
    inner: int = 256  # width of a head's hidden layer


class ParallelHeads(DraftNetwork):
    """Base of heads that guess from one and the same state: head i the token i + 1 places behind it, counted from 1."""

    kind = "blockwise_parallel"

    def guesses(self, lm: LM, state: Tensor, places: int) -> Tensor:
        """The logits (places, V) of the first heads behind a state (D,) of the model."""
        raise NotImplementedError

    def rehearse(self, lm: LM, passes: int) -> None:
        self.guesses(lm, torch.zeros(self.shape.width, device=lm.device), self.shape.heads)


class BlockwiseHeads(ParallelHeads):
    """h_i = h + W_i relu(V_i h) for every head i; the model's own vocabulary projection follows. W starts at zero, so
    that an untrained head says what the model's own does."""

    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.hidden = nn.Linear(shape.width, shape.heads * shape.inner)
        self.out = nn.Parameter(torch.zeros(shape.heads, shape.inner, shape.width))

    def forward(self, states: Tensor) -> Tensor:
        """States (N, D) of the model behind its last norm -> states of the heads (heads, N, D)."""
        states = self.at_home(states)
        rows = torch.relu(self.hidden(states)).view(-1, self.shape.heads, self.shape.inner).transpose(0, 1)
        return torch.baddbmm(states.expand(self.shape.heads, -1, -1), rows, self.out)

    def guesses(self, lm: LM, state: Tensor, places: int) -> Tensor:
        return lm.head(self(state[None])[:places, 0])

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        marks = Marks()
        features = self(lesson.states[-1].flatten(0, 1)).view(-1, *lesson.ids.shape, self.shape.width)
        for place in range(self.shape.heads):
            entries, positions, tokens = lesson.ahead(place + 2)
            marks.guess(lm.head(features[place, entries, positions]), tokens)
        return marks
