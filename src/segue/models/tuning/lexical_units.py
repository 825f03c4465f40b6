"""Tuning for lexical units (Sun et al. 2024, section 3): what the model foresees is learned as one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.models.tuning.base import IGNORED, Tuning, entropy, following


@dataclass(frozen=True)
class LexicalUnitTuning(Tuning):
    """In every text one unit is chosen at random among the runs of tokens that the model itself gives more than alpha
    each. Pads take the place of all but its first token's predecessor, labelled with its tokens; what lies behind is
    not learned. Texts without a unit are learned as they are. The model marks units as it learns, not once before."""

    kind = "lexical_units"

    k: int = 4  # tokens of a unit, at most
    alpha: float = 0.9  # probability above which a token is foreseen

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k={self.k} is not allowed: at least 2, since a unit has as many tokens")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha={self.alpha:g} is not allowed: from 0 to below 1")

    def loss(self, network: Any, ids: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        labels, read = following(ids, there), ids.clone()
        with torch.no_grad():
            logp = network(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        sure = torch.zeros_like(there)
        sure[:, 1:] = logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].exp() > self.alpha
        for row, unit in enumerate(units(sure & there, self.k)):
            if not unit:
                continue
            start, size = unit[int(torch.randint(len(unit), (1,), generator=generator))]
            # The token before the unit says its first; pad number j, in the place of its token j, says token j + 1.
            read[row, start : start + self.k - 1] = self.mask
            labels[row, start + size - 1 :] = IGNORED
        return entropy(network(input_ids=read, use_cache=False).logits, labels)


def units(sure: Tensor, longest: int) -> list[list[tuple[int, int]]]:
    """In every row (B, T) of sure tokens the runs of at least 2, as (start, length), long ones cut at `longest`."""
    found = []
    for row in sure.tolist():
        runs, start = [], None
        for place, one in enumerate([*row, False]):
            if one and start is None:
                start = place
            elif not one and start is not None:
                runs += [(at, min(longest, place - at)) for at in range(start, place, longest)]
                start = None
        found.append([(at, size) for at, size in runs if size > 1])
    return found
