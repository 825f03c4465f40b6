"""Semi-autoregressive fine-tuning (Yi et al. 2024, section 3.1): now and then the text goes on with masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.models.tuning.base import IGNORED, Tuning, entropy, following


@dataclass(frozen=True)
class SpaceTuning(Tuning):
    """With a chance of one half a text is cut at a random place, and k + 1 masks follow. What stands one place behind a
    mask is its label, so that the first mask stands for the next token."""

    kind = "space"

    k: int = 5
    share: float = 0.5  # of the texts that are cut; 0 is ordinary fine-tuning, to compare with

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} is not allowed: at least 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share:g} is not allowed: from 0 (no text is cut) to 1 (all are)")

    def loss(self, network: Any, ids: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        size, length = ids.shape
        labels = following(ids, there)
        read = ids.clone()
        lengths = there.sum(-1)
        cut = (torch.rand(size, generator=generator) * (lengths - 1).clamp(min=1)).long() + 1
        chosen = torch.rand(size, generator=generator) < self.share
        places = torch.arange(length)
        for row in chosen.nonzero().flatten().tolist():
            masked = (places >= cut[row]) & (places <= cut[row] + self.k)
            read[row, masked] = self.mask
            labels[row, places > cut[row] + self.k] = IGNORED
        return entropy(network(input_ids=read, use_cache=False).logits, labels)
