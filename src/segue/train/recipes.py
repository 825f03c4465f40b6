"""The training recipes, each a frozen record of every number its run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from segue.models.build import LlamaShape

MIXTURE = MappingProxyType(
    {
        "tales": 0.34,
        "books": 0.11,
        "wiki": 0.10,
        "questions": 0.10,
        "maths": 0.09,
        "translation": 0.09,
        "stdlib": 0.09,
        "programs": 0.01,
        "dialogue": 0.05,
        "instructions": 0.005,
        "rust": 0.015,
    }
)


@dataclass(frozen=True)
class Recipe:
    """One model to train: its shape, its data and its schedule; fractions are of the budget spent."""

    name: str
    shape: LlamaShape
    mixture: Mapping[str, float] = field(default_factory=lambda: MIXTURE)
    minutes: float = 60.0  # the budget where the caller names none
    batch_tokens: int = 8192
    micro_tokens: int = 1024  # per forward pass; small ones stay in the processor's cache
    length: int = 512
    long_length: int = 2048
    long_from: float = 0.85  # from here on sequences are long
    warm_until: float = 0.02
    decay_from: float = 0.70  # from here on the learning rates fall linearly to 0
    muon_lr: float = 0.02  # hidden matrices
    adam_lr: float = 4e-3  # embeddings and norms
    weight_decay: float = 0.02
    clip: float = 1.0
    distil: float = 0.0  # weight of the divergence from a teacher; the rest is cross-entropy on the data
    seed: int = 20


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "mini": Recipe("mini", LlamaShape(6144, 256, 6, 4, 2, 768), minutes=80.0),
        "mini-draft": Recipe(
            "mini-draft",
            LlamaShape(6144, 128, 2, 2, 1, 512),
            minutes=16.0,
            batch_tokens=4096,
            distil=0.75,
        ),
    }
)


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`."""
    if name in RECIPES:
        return RECIPES[name]
    close = get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown recipe {name!r}; did you mean {close!r}? There are: {', '.join(RECIPES)}")
