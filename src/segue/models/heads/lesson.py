"""What a drafter learns from: texts with the base model's states, and how well it guesses them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Lesson:
    """A batch of texts, padded behind their ends."""

    ids: Tensor  # (B, T) tokens
    own: Tensor  # (B, T) bool: tokens that are to be guessed; false in prompts and padding
    states: dict[int, Tensor]  # as numbered by Want.hidden: (B, T, D), the base model's behind every token

    def ahead(self, places: int) -> tuple[Tensor, Tensor, Tensor]:
        """Every token to guess that stands `places` behind a state: the batch entries (N,) and positions (N,) of the
        states, and the tokens (N,)."""
        entries, positions = self.own[:, places:].nonzero(as_tuple=True)
        return entries, positions, self.ids[entries, positions + places]


@dataclass
class Marks:
    """Losses and hits, place by place: the first place is the token behind the pending one."""

    losses: list[Tensor] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def guess(self, logits: Tensor, tokens: Tensor) -> None:
        """The next place: logits (N, V) for tokens (N,)."""
        logits = logits.float()
        self.note(F.cross_entropy(logits, tokens) if len(tokens) else logits.sum(), logits, tokens)

    def note(self, loss: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """The next place, with a loss of its own."""
        self.losses.append(loss)
        self.hits.append(int((logits.argmax(-1) == tokens).sum()))
        self.counts.append(len(tokens))

    @property
    def loss(self) -> Tensor:
        """The mean over the places."""
        return torch.stack(self.losses).mean()
