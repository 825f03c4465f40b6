"""Output heads with a vocabulary projection each, as others trained them (Medusa, Cai et al. 2024, section 2.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.blockwise import ParallelHeads
from segue.models.lm import LM


@dataclass(frozen=True)
class Shape(base.Shape):
    heads: int = 5
    layers: int = 1  # of each


class MedusaHeads(ParallelHeads):
    """Every layer of a head adds silu(W h + b) to h; the head's own projection follows. Their guesses are for the same
    places as those of blockwise heads, so that the same methods draft with them."""

    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.layers = nn.ModuleList(nn.Linear(shape.width, shape.width) for _ in range(shape.heads * shape.layers))
        self.out = nn.ModuleList(nn.Linear(shape.width, shape.vocab_size, bias=False) for _ in range(shape.heads))

    def guesses(self, lm: LM, state: Tensor, places: int) -> Tensor:
        state = self.at_home(state)
        return torch.stack([self(head, state) for head in range(places)])

    def forward(self, head: int, states: Tensor) -> Tensor:
        """States (..., D) of the model behind its last norm -> logits (..., V) of one head."""
        for layer in range(self.shape.layers):
            states = states + F.silu(self.layers[head * self.shape.layers + layer](states))
        logits: Tensor = self.out[head](states)
        return logits
