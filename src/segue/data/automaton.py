"""What a constraint is to whoever decodes: which tokens may come after what was written so far."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from torch import Tensor

NEVER = 1 << 40  # `shortest` of a state from which no text is ever accepted


@runtime_checkable
class Automaton(Protocol):
    """Reads the new tokens of a text one by one. States are immutable and hashable, so a text can be taken back, forked
    or tried out by keeping a state; the automaton itself only caches."""

    vocab_size: int
    end_ids: frozenset[int]  # end-of-text tokens: allowed exactly where the text is accepted, and nothing follows

    def start(self) -> Hashable:
        """The state before the first new token."""
        ...

    def allowed(self, state: Hashable) -> Tensor:
        """(V,) bool: the tokens that may come next; not to be written to."""
        ...

    def check(self, state: Hashable, token: int) -> bool:
        """Whether one token may come next: allowed(state)[token] without the rest of the mask."""
        ...

    def step(self, state: Hashable, token: int) -> Hashable | None:
        """The state behind a token; None where it is not allowed."""
        ...

    def accepting(self, state: Hashable) -> bool:
        """Whether the text may end here."""
        ...

    def progress(self, state: Hashable) -> int:
        """Tokens of the constraint that are met so far: the bank of a beam search."""
        ...

    def shortest(self, state: Hashable) -> int | None:
        """Tokens (end of text not counted) with which the text can be accepted, the fewest where that is cheap to know;
        NEVER where there are none, None where it is not known."""
        ...
