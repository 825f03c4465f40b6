"""A small recurrent network over a state and the tokens that were chosen behind it (Wertheimer et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.base import DraftNetwork
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM

EPSILON = 1e-6  # of the norms


@dataclass(frozen=True)
class Shape(base.Shape):
    stages: int = 3  # tokens that it guesses
    inner: int = 256  # width of its own state
    tied: bool = False  # stages share their weights
    scale_input: bool = False  # the model's state is normalised first


class ShiftedNorm(nn.RMSNorm):
    """g x / sqrt(mean(x ** 2) + eps) + b. The authors call it a layer norm; it takes no mean away."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPSILON)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = super().forward(states) + self.bias
        return out


class Speculator(DraftNetwork):
    """s_i = GELU(norm_i(w_s P_i s_{i-1} + w_e E_i[token i-1])), logits_i = H_i s_i; s_0 is the model's own state.

    w_s = 0.5 ** (0.5 / stages) and w_e = sqrt((1 - w_s ** 2) inner / 2) leave half of s_0 in the last stage's state.
    """

    kind = "mlp_speculator"
    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        own = 1 if shape.tied else shape.stages
        after = min(own, 1) if shape.tied else shape.stages - 1
        self.embedding = nn.ModuleList(nn.Embedding(shape.vocab_size, shape.inner) for _ in range(own))
        self.enter = nn.Linear(shape.width, shape.inner, bias=False)
        self.go_on = nn.ModuleList(nn.Linear(shape.inner, shape.inner, bias=False) for _ in range(after))
        self.norm = nn.ModuleList(ShiftedNorm(shape.inner) for _ in range(own))
        self.head = nn.ModuleList(nn.Linear(shape.inner, shape.vocab_size, bias=False) for _ in range(own))
        self.state_weight = 0.5 ** (0.5 / shape.stages)
        self.token_weight = ((1 - self.state_weight**2) * shape.inner / 2) ** 0.5

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        for weight in self.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, self.shape.inner**-0.5, generator=generator)

    def begin(self, states: Tensor) -> Tensor:
        """s_0 (N, D) from states of the model (N, D)."""
        states = self.at_home(states)
        return F.rms_norm(states, states.shape[-1:], eps=EPSILON) / 2**0.5 if self.shape.scale_input else states

    def forward(self, stage: int, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The state (N, inner) and logits (N, V) of a stage, from the one before and the tokens (N,) chosen there."""
        own = 0 if self.shape.tied else stage
        project = self.enter if stage == 0 else self.go_on[0 if self.shape.tied else stage - 1]
        mixed = self.state_weight * project(states) + self.token_weight * self.embedding[own](tokens)
        states = F.gelu(self.norm[own](mixed))
        return states, self.head[own](states)

    def passes(self, depth: int) -> int:
        return min(depth, self.shape.stages)

    def rehearse(self, lm: LM, passes: int) -> None:
        states = self.begin(torch.zeros(1, self.shape.width, device=lm.device))
        for stage in range(passes):
            states, _ = self(stage, states, torch.zeros(1, dtype=torch.long, device=lm.device))

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        marks = Marks()
        entries, positions, _ = lesson.ahead(2)
        states = self.begin(lesson.states[-1][entries, positions])
        length = lesson.ids.shape[1]
        for stage in range(self.shape.stages):
            states, logits = self(stage, states, lesson.ids[entries, (positions + stage + 1).clamp(max=length - 1)])
            places = (positions + stage + 2).clamp(max=length - 1)
            there = (positions + stage + 2 < length) & lesson.own[entries, places]
            marks.guess(logits[there], lesson.ids[entries, places][there])
        return marks
