"""The training recipes, each a frozen record of every number its run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType

from segue.models.build import LlamaShape, T5Shape

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
    """What one model is trained by: its schedule, here, and its shape and data; fractions are of the budget spent."""

    name: str
    _: KW_ONLY
    minutes: float = 60.0  # the budget where the caller names none
    batch_tokens: int = 8192  # predicted tokens per gradient step
    micro_tokens: int = 1024  # per forward pass; small ones stay in the processor's cache
    warm_until: float = 0.02
    decay_from: float = 0.70  # from here on the learning rates fall linearly to 0
    muon_lr: float = 0.02  # hidden matrices
    adam_lr: float = 4e-3  # embeddings and norms
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 20

    @property
    def taught(self) -> bool:
        """Whether it learns from the model of another recipe."""
        return False

    def size(self) -> dict[str, int]:
        """The layers, width and vocabulary of the model."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """All numbers that the weights depend on, the budget left out."""
        numbers = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "minutes"]
        return f"{type(self).__name__} {numbers!r}"


@dataclass(frozen=True)
class LanguageModel(Recipe):
    """A model that continues text, trained on a mixture of sources."""

    shape: LlamaShape
    mixture: Mapping[str, float] = field(default_factory=lambda: MIXTURE)
    length: int = 512
    long_length: int = 2048
    long_from: float = 0.85  # from here on sequences are long
    distil: float = 0.0  # weight of the divergence from a teacher; the rest is cross-entropy on the data

    @property
    def taught(self) -> bool:
        return bool(self.distil)

    def size(self) -> dict[str, int]:
        shape = self.shape
        return {"layers": shape.num_hidden_layers, "width": shape.hidden_size, "vocabulary": shape.vocab_size}


@dataclass(frozen=True)
class Translation(Recipe):
    """An encoder-decoder that translates, trained on sentence pairs."""

    shape: T5Shape
    smoothing: float = 0.1  # share of the target probability that is spread over the vocabulary

    def size(self) -> dict[str, int]:
        shape = self.shape
        layers = shape.num_layers + shape.num_decoder_layers
        return {"layers": layers, "width": shape.d_model, "vocabulary": shape.vocab_size}


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "mini": LanguageModel("mini", LlamaShape(6144, 256, 6, 4, 2, 768), minutes=80.0),
        "mini-draft": LanguageModel(
            "mini-draft",
            LlamaShape(6144, 128, 2, 2, 1, 512),
            minutes=16.0,
            batch_tokens=4096,
            distil=0.75,
        ),
        "mt-mini": Translation(
            "mt-mini",
            T5Shape(4096, 192, 512, 3, 3, 3, dropout_rate=0.0),
            minutes=50.0,
            batch_tokens=2048,
            adam_lr=1e-2,
        ),
    }
)


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`."""
    if name in RECIPES:
        return RECIPES[name]
    close = get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown recipe {name!r}; did you mean {close!r}? There are: {', '.join(RECIPES)}")
