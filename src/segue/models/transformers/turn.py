"""Moving cached keys to other positions: a rotary key at position p turned by n - p is the key at position n.

SpecExtend (arXiv:2505.20776) renumbers the rows of its working cache so that a draft trained on short texts never meets
a far position. Whether a family's keys can be turned is found out by doing: one token is read at two positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.data import CapabilityError
from segue.models.transformers.kv import Turn
from segue.models.transformers.probe import look

PLACE = 5  # where the tried token is read a second time
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def find_turn(network: Any) -> Turn:
    """How keys of `network`, which is driven by Segue's attention, are moved. Raises CapabilityError where turning a
    key does not give what the network itself would have cached."""
    rotary = [m for m in network.modules() if "rotary" in type(m).__name__.lower()]
    family = network.config.model_type
    refusal = CapabilityError(f"{family} does not keep rotary keys that can be moved: keep their own positions instead")
    if len(rotary) != 1:
        raise refusal

    def turn(_: int, keys: Tensor, places: Tensor) -> Tensor:
        steps = torch.arange(len(places), device=keys.device) - places
        return _turned(rotary[0], keys, steps)

    try:
        first, later = _keys(network, 0), _keys(network, PLACE)
        moved = [_turned(rotary[0], key, torch.tensor([-PLACE], device=key.device)) for key in later]
    except (TypeError, ValueError, RuntimeError):
        raise refusal from None
    for own, other in zip(first, moved, strict=True):
        if float((own - other).abs().max()) > TOLERANCE[own.dtype] * max(float(own.abs().max()), 1e-3):
            raise refusal
    return turn


def _turned(rotary: Any, keys: Tensor, steps: Tensor) -> Tensor:
    """Keys (1, G, k, d) turned by `steps` (k,) positions."""
    cos, sin = rotary(keys.new_empty(1, dtype=torch.float32), position_ids=steps[None])
    scale = (cos[0, 0, 0] ** 2 + sin[0, 0, 0] ** 2).sqrt()  # yarn scales both; the keys are scaled already
    cos, sin = cos[:, None] / scale, sin[:, None] / scale
    width = cos.shape[-1]  # a part of the head where the family rotates only that
    x = keys[..., :width].float()
    low, high = x.chunk(2, -1)
    out = x * cos + torch.cat((-high, low), -1) * sin
    return torch.cat((out.to(keys.dtype), keys[..., width:]), -1)


def _keys(network: Any, position: int) -> list[Tensor]:
    """What every layer caches of one token read alone at a position: its state is the same wherever it stands."""
    return [key for key, _, _ in look(network, position)]
