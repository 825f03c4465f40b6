"""Tuning for set block decoding (Gat et al. 2025, section 3): next tokens and masked ones, on a text laid out twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.models.tuning.base import IGNORED, Tuning, entropy, following


@dataclass(frozen=True)
class SetBlockTuning(Tuning):
    """A clean copy, causal, labelled with the next tokens; and a copy in blocks in which every token is masked with a
    chance eta ~ U(0, 1), which sees the block it is in and the clean tokens before that, labelled with what is masked.
    Blocks are of a random size up to `block` and begin at a random place. Both losses count the same."""

    kind = "set_block"

    block: int = 8  # tokens of a block, at most

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block={self.block} is not allowed: at least 1")

    def loss(self, network: Any, ids: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        count, length = ids.shape
        size = int(torch.randint(2, self.block + 1, (1,), generator=generator)) if self.block > 1 else 1
        shift = int(torch.randint(size, (1,), generator=generator))
        eta = torch.rand(count, 1, generator=generator)
        masked = (torch.rand(count, length, generator=generator) < eta) & there
        masked[:, 0] = False  # nothing stands before it
        noisy = ids.masked_fill(masked, self.mask)
        places = torch.arange(length)
        visible = layout(length, size, shift)
        seen = torch.zeros(visible.shape, dtype=network.dtype).masked_fill(~visible, torch.finfo(network.dtype).min)
        logits = network(
            input_ids=torch.cat([ids, noisy], 1),
            position_ids=torch.cat([places, places])[None].expand(count, -1),
            attention_mask=seen[None, None].expand(count, 1, -1, -1),
            use_cache=False,
        ).logits
        labels = torch.where(masked, ids, IGNORED)
        return entropy(logits[:, :length], following(ids, there)) + entropy(logits[:, length:], labels)


def layout(length: int, size: int, shift: int) -> Tensor:
    """(2T, 2T) bool: which places of the clean and the noisy copy see which; blocks of `size` end before place `shift`
    and so on from there."""
    places = torch.arange(length)
    blocks = (places + size - shift) // size
    causal = places[:, None] >= places
    own = blocks[:, None] == blocks
    before = blocks[:, None] > blocks
    nothing = torch.zeros(length, length, dtype=torch.bool)
    return torch.cat([torch.cat([causal, nothing], 1), torch.cat([before, own], 1)])
