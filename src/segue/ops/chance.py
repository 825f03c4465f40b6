"""Randomness as an argument: every random choice of a method goes through one of two verbs.

Because there are only two, a law can replace the source by a script that walks all branches (laws/enumerate.py).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Chance(Protocol):
    """A source of random choices."""

    def index(self, p: Tensor) -> int:
        """Draw an index from the probabilities p (V,); they need not be normalised exactly."""
        ...

    def keeps(self, p: float, q: float) -> bool:
        """True with probability min(1, p / q)."""
        ...


class Generator:
    """Seeded choices on the CPU, so that a seed means the same on every device."""

    def __init__(self, seed: int | None = None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def index(self, p: Tensor) -> int:
        # The inverse of the distribution function needs one uniform number; multinomial would draw one per token.
        cumulative = p.detach().to("cpu", torch.float64).cumsum(0)
        u = self._uniform() * float(cumulative[-1])
        position = int(torch.searchsorted(cumulative, u, right=True))
        return min(position, int(p.nonzero()[-1]))

    def keeps(self, p: float, q: float) -> bool:
        # Strict, so that u = 0 never keeps a token of probability 0.
        return self._uniform() * q < p

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))
