"""What the training loop asks of the thing it trains, be it a language model or a translator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Pass:
    """One forward pass of a gradient step."""

    loss: torch.Tensor  # what is minimised, a mean over the tokens
    entropy: float  # cross-entropy on the data alone, nats per token
    share: float  # of the step's tokens; those of a step sum to 1
    tokens: int  # predicted here


class Task(Protocol):
    """A model with its data. `place` is all that says where in the data training is, kept in checkpoints as it is."""

    model: Any
    tokenizer_file: Path
    place: dict[str, int]

    @property
    def told(self) -> tuple[str, ...]:
        """The measures that a reader is shown while training goes on."""

    def passes(self, spent: float) -> Iterator[Pass]:
        """The forward passes of the next gradient step, at a fraction of the budget."""

    def evaluate(self, *, quick: bool) -> dict[str, dict[str, float]]:
        """Measures on held-out data, by its name; `quick` reads a part of it."""

    def facts(self) -> Mapping[str, Any]:
        """What the summary says of this kind of task alone."""
