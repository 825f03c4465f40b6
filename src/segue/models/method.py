"""What every decoding method is: a frozen dataclass with a card and one verb."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from segue.card import Card
from segue.models.run import Decoder, Run


@runtime_checkable
class Method(Protocol):
    """A way to decode. The object holds its settings only; everything that changes lives in the run."""

    card: ClassVar[Card]

    def run(self, run: Run) -> Decoder[None]:
        """Decode one request to its end: yield forwards, receive scores, emit tokens on `run`."""
        ...


def sequences_of(method: object) -> int:
    """Sequences that a run of a method may hold at a time: one, unless it says otherwise."""
    return int(getattr(method, "sequences", 1))
