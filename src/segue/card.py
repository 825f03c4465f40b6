"""What a method states about itself: the paper, the claim, the promise. No torch here, so that listing stays fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Unit = Literal["speed-up", "tokens/forward", "throughput ratio", "latency ratio", "none"]
Trains = Literal["nothing", "heads", "a draft model", "the model"]


@dataclass(frozen=True)
class Paper:
    id: str  # arXiv or ACL identifier, github:owner/name of what is published as code only, "" for a plain technique
    title: str
    year: int


@dataclass(frozen=True)
class Claim:
    """What the paper reports: a number with its unit, its baseline and the setting it was measured in. Where no source
    at hand gives a number, the value is None and the unit "none"; the setting then says what is claimed."""

    value: float | None
    unit: Unit
    baseline: str
    setting: str

    @property
    def figure(self) -> str:
        """The number and its unit."""
        return "no figure" if self.value is None else f"{self.value:g} {self.unit}"

    def __str__(self) -> str:
        return f"{self.figure} {'against' if self.value is None else 'over'} {self.baseline} ({self.setting})"


@dataclass(frozen=True)
class SameTokens:
    """Greedy output equals plain greedy decoding of the same model, token for token, in float32."""


@dataclass(frozen=True)
class SameDistribution:
    """Samples follow the model's (warped) distribution exactly."""


@dataclass(frozen=True)
class SameTarget:
    """Follows a declared other distribution or optimum."""

    target: str


@dataclass(frozen=True)
class Limit:
    """Approximate in general; the exact laws hold when `knob` equals `exact_at`."""

    knob: str
    exact_at: float
    begin: float = 0.0  # where the law starts on its way to `exact_at`


@dataclass(frozen=True)
class Learned:
    """A trained object that must beat a named control."""

    control: str


Exactness = SameTokens | SameDistribution | SameTarget | Limit | Learned


@dataclass(frozen=True)
class Card:
    """The literal on every method class. The catalog reads it from the syntax tree, without importing the method."""

    paper: Paper
    claim: Claim | None
    exact: tuple[Exactness, ...]
    trains: Trains = "nothing"
    needs: tuple[str, ...] = ("logits",)  # "logits", "tree attention", "a draft model", "hidden states", ...
    departs: str = ""  # our differences from the paper; empty means none
    check: str = ""  # the bench suite that measures it
    rev: int = 1  # bumped whenever outputs change

    def as_dict(self) -> dict[str, object]:
        data = asdict(self)
        data["exact"] = [{"class": type(e).__name__, **asdict(e)} for e in self.exact]
        return data
