"""The training recipes, each a frozen record of every number its run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from types import MappingProxyType
from typing import Any

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
    muon_lr: float = 0.02  # hidden matrices; at 0 they are trained as the rest
    adam_lr: float = 4e-3  # embeddings and norms
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 20

    @property
    def taught(self) -> bool:
        """Whether it learns from the model of another recipe."""
        return False

    def size(self) -> dict[str, int]:
        """What there is to say of the shape: of a model its layers, width and vocabulary."""
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


@dataclass(frozen=True)
class Drafter(Recipe):
    """A network beside a frozen model, which learns to guess what the model writes."""

    kind: str
    numbers: tuple[tuple[str, int], ...] = ()  # of its shape
    texts_until: float = 0.0  # up to this fraction of the budget on the texts as they are, then on the model's own
    windows: int = 4096  # texts of each sort, at most
    prompt: int = 32  # tokens of a window's beginning
    length: int = 128  # tokens behind it
    temperature: float = 1.0  # at which the model writes
    top_k: int = 10
    shortlist: int = 0  # it guesses among so many first tokens of the vocabulary, 0: among all; of those that attend

    def size(self) -> dict[str, int]:
        return dict(self.numbers)


@dataclass(frozen=True)
class Tuned(Recipe):
    """A whole model that goes on learning, by the objective of a method that needs a model of its own."""

    kind: str
    length: int = 128  # tokens of a text
    mask: int = -1  # token that masks; -1: the tokenizer's own mask, or its padding
    numbers: tuple[tuple[str, float], ...] = ()  # of its objective, where they are not the objective's defaults

    def size(self) -> dict[str, int]:
        return {}


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


TUNED: Mapping[str, Tuned] = MappingProxyType(
    {
        kind: Tuned(kind, kind=kind, minutes=20.0, batch_tokens=4096, micro_tokens=2048, muon_lr=0.0, adam_lr=5e-4)
        for kind in ("space", "lexical_units", "set_block", "free")
    }
)
CHOICES = (
    *("texts_until", "windows", "prompt", "length", "temperature", "top_k", "shortlist"),
    *("batch_tokens", "adam_lr", "seed"),
)
TUNED_CHOICES = ("length", "mask", "batch_tokens", "adam_lr", "seed")
ZERO = ("texts_until", "shortlist", "mask", "seed")  # of these, those that may be 0


def _drafter(kind: str, **values: Any) -> Drafter:
    return Drafter(f"drafter {kind}", kind=kind, minutes=10.0, batch_tokens=2048, muon_lr=0.0, adam_lr=2e-3, **values)


DRAFTERS: Mapping[str, Drafter] = MappingProxyType(
    {
        recipe.kind: recipe
        for recipe in (
            _drafter("blockwise_parallel"),
            _drafter("mlp_speculator", texts_until=0.7),
            _drafter("chimera"),
            _drafter("jakiro"),
            _drafter("eesd"),
        )
    }
)


def drafter_recipe(kind: str, values: Mapping[str, Any] = MappingProxyType({})) -> Drafter:
    """How a drafter of a kind is trained; `values` are numbers in which it shall differ, of the recipe or of the
    network's shape, also as text."""
    if kind not in DRAFTERS:
        close = get_close_matches(kind, DRAFTERS, n=1, cutoff=0.0)[0]
        known = ", ".join(DRAFTERS)
        raise ValueError(f"no drafter of kind {kind!r} can be trained; did you mean {close!r}? There are: {known}")
    recipe = DRAFTERS[kind]
    own = _own(recipe, values, CHOICES)
    shape = dict(recipe.numbers) | {n: _number(n, value, 0) for n, value in values.items() if n not in CHOICES}
    recipe = replace(recipe, numbers=tuple(shape.items()), **own)
    recipe = replace(recipe, micro_tokens=min(recipe.micro_tokens, recipe.batch_tokens))
    if not 0 <= recipe.texts_until <= 1:
        raise ValueError(f"texts_until={recipe.texts_until:g} is not allowed: from 0 (never) to 1 (always)")
    return recipe


def tuned_recipe(kind: str, values: Mapping[str, Any] = MappingProxyType({})) -> Tuned:
    """How a model is tuned for a method; `values` are numbers in which it shall differ, of the recipe or of the
    method's objective, also as text."""
    from segue.models.tuning import TUNINGS  # needs torch, which a list of the recipes does not

    recipe, objective = TUNED[kind], TUNINGS[kind]
    likes: dict[str, Any] = {f.name: f.default for f in fields(objective) if f.name != "mask"}
    strange = next((name for name in values if name not in (*TUNED_CHOICES, *likes)), None)
    if strange is not None:
        raise ValueError(f"{kind} has no number {strange!r}: it has {', '.join([*TUNED_CHOICES, *likes])}")
    own = _own(recipe, values, TUNED_CHOICES)
    numbers = {name: _number(name, value, likes[name]) for name, value in values.items() if name in likes}
    objective(**numbers)  # says which of them is not allowed
    recipe = replace(recipe, numbers=tuple(numbers.items()), **own)
    if recipe.length < 2:
        raise ValueError(f"length={recipe.length} is not allowed: at least 2 tokens, of which one says the next")
    return replace(recipe, micro_tokens=min(recipe.micro_tokens, max(recipe.batch_tokens, recipe.length)))


def _own(recipe: Recipe, values: Mapping[str, Any], choices: tuple[str, ...]) -> dict[str, Any]:
    """Those of the values that are a recipe's own numbers."""
    found = {name: _number(name, value, getattr(recipe, name)) for name, value in values.items() if name in choices}
    for name, number in found.items():
        if number == 0 and name not in ZERO:
            raise ValueError(f"{name}={number} is not allowed: above 0")
    return found


def _number(name: str, value: Any, like: float) -> Any:
    """A number of the kind of `like`, given as text or as a number. ValueError where it is none, is below 0, or has a
    fraction and may have none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (isfinite(number) and number >= 0):
        raise ValueError(f"{name}={value} is not allowed: a number of at least 0")
    if isinstance(like, int) and not number.is_integer():
        raise ValueError(f"{name}={value} is not allowed: a whole number")
    return type(like)(number)


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`."""
    if name in RECIPES:
        return RECIPES[name]
    close = get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown recipe {name!r}; did you mean {close!r}? There are: {', '.join(RECIPES)}")
