"""What the automata of the library share: ends of text, masks, and how far it is to an accepted text.

Below an automaton is a table in the symbolic form: for each state the tokens with a transition of their own, and one
transition for all the rest. So the largest vocabulary costs no more than the phrases that are spoken of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.data import NEVER, Automaton

State = Hashable
Moves = tuple[Mapping[int, State | None], State | None]  # token -> next state (None: not allowed), and for all others
Sequences = Iterable[Iterable[int]]


@dataclass(frozen=True, slots=True)
class Ended:
    """The state behind an end of text."""

    before: State


class Base(ABC):
    """An automaton whose subclass speaks of ordinary tokens only; ends of text are added here."""

    def __init__(self, vocab_size: int, end_ids: Collection[int]) -> None:
        self.vocab_size = vocab_size
        self.end_ids = frozenset(end_ids)
        bad = [t for t in self.end_ids if not 0 <= t < vocab_size]
        if bad:
            raise ValueError(f"end_ids names token {bad[0]}, but the vocabulary ends at {vocab_size - 1}")
        self._ends = torch.tensor(sorted(self.end_ids), dtype=torch.long)
        self._ordinary_count = vocab_size - len(self.end_ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__} over {self.vocab_size} tokens"

    @abstractmethod
    def start(self) -> State:
        """The state before the first token."""

    @abstractmethod
    def next(self, state: State, token: int) -> State | None:
        """The state behind an ordinary token."""

    @abstractmethod
    def mask(self, state: State) -> Tensor:
        """(V,) bool, a new one: the tokens that `next` takes. What it says of ends of text does not count."""

    @abstractmethod
    def accepts(self, state: State) -> bool:
        """Whether the text may end."""

    def distance(self, state: State) -> int | None:
        """Tokens until the text may end; see `Automaton.shortest`."""
        return None

    def met(self, state: State) -> int:
        """Tokens of the constraint met so far."""
        return 0

    def moves(self, state: State) -> Moves | None:
        """All transitions at once, where they can be listed."""
        return None

    def allowed(self, state: State) -> Tensor:
        if isinstance(state, Ended):
            return torch.zeros(self.vocab_size, dtype=torch.bool)
        mask = self.mask(state)
        mask[self._ends] = self.accepts(state)
        return mask

    def check(self, state: State, token: int) -> bool:
        return self.step(state, token) is not None

    def step(self, state: State, token: int) -> State | None:
        if isinstance(state, Ended) or not 0 <= token < self.vocab_size:
            return None
        if token in self.end_ids:
            return Ended(state) if self.accepts(state) else None
        return self.next(state, token)

    def accepting(self, state: State) -> bool:
        return isinstance(state, Ended) or self.accepts(state)

    def progress(self, state: State) -> int:
        return self.met(state.before if isinstance(state, Ended) else state)

    def shortest(self, state: State) -> int | None:
        return 0 if isinstance(state, Ended) else self.distance(state)

    def within(self, state: State, budget: int) -> Tensor:
        """(V,) bool: the allowed tokens behind which the text can be accepted with `budget` tokens in all; everything
        that is allowed where `shortest` is not known."""
        if isinstance(state, Ended) or self.distance(state) is None:
            return self.allowed(state)
        known = self.moves(state)
        if known is None:
            return one_by_one(self, state, budget)
        mask = self._spread(known, lambda s: (self.distance(s) or 0) < budget)
        mask[self._ends] = self.accepts(state)
        return mask

    def _spread(self, moves: Moves, holds: Callable[[State], bool]) -> Tensor:
        """(V,) bool: tokens whose next state exists and `holds`."""
        own, rest = moves
        mask = torch.full((self.vocab_size,), rest is not None and holds(rest))
        if own:
            values = [s is not None and holds(s) for s in own.values()]
            mask[torch.tensor(list(own), dtype=torch.long)] = torch.tensor(values)
        return mask

    def _neighbours(self, state: State) -> set[State]:
        """States behind one ordinary token; only where the moves are known."""
        moves = self.moves(state)
        assert moves is not None
        own, rest = moves
        found = {s for s in own.values() if s is not None}
        if rest is not None and len(own) < self._ordinary_count:
            found.add(rest)
        return found


class Table(Base):
    """An automaton whose moves can be listed for every state."""

    @abstractmethod
    def moves(self, state: State) -> Moves: ...

    def next(self, state: State, token: int) -> State | None:
        own, rest = self.moves(state)
        return own.get(token, rest)

    def mask(self, state: State) -> Tensor:
        return self._spread(self.moves(state), lambda s: True)

    def _sequences(self, sequences: Sequences, what: str) -> list[tuple[int, ...]]:
        """Token sequences, checked."""
        found = [tuple(int(t) for t in sequence) for sequence in sequences]
        for sequence in found:
            bad = next((t for t in sequence if not 0 <= t < self.vocab_size), None)
            if bad is not None:
                raise ValueError(f"{what} {list(sequence)} has token {bad}, but there are {self.vocab_size} tokens")
            end = next((t for t in sequence if t in self.end_ids), None)
            if end is not None:
                raise ValueError(f"{what} {list(sequence)} has token {end}, which ends the text: leave it out")
        return found


def distances(start: State, neighbours: Callable[[State], set[State]], accepts: Callable[[State], bool], most: int
              ) -> dict[State, int] | None:  # fmt: skip
    """The fewest tokens from every state within reach of `start` to an accepting one (those without a way are left
    out), by a search backwards; None where more than `most` states are within reach."""
    before: dict[State, list[State]] = {start: []}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for other in neighbours(state):
            if other not in before:
                if len(before) >= most:
                    return None
                before[other] = []
                queue.append(other)
            before[other].append(state)
    found = {state: 0 for state in before if accepts(state)}
    queue = deque(found)
    while queue:
        state = queue.popleft()
        for other in before[state]:
            if other not in found:
                found[other] = found[state] + 1
                queue.append(other)
    return found


def within(automaton: Automaton, state: State, budget: int) -> Tensor:
    """(V,) bool: the allowed tokens behind which `automaton` can still accept, with `budget` tokens in all. Everything
    that is allowed where it does not know. An automaton that has a quicker `within` of its own is asked."""
    own: Callable[[State, int], Tensor] | None = getattr(automaton, "within", None)
    if own is not None:
        return own(state, budget)
    return automaton.allowed(state) if automaton.shortest(state) is None else one_by_one(automaton, state, budget)


def permits(automaton: Automaton, state: State, token: int, budget: int) -> bool:
    """`within(automaton, state, budget)[token]`, without the rest of the mask."""
    own: Callable[[State, int, int], bool] | None = getattr(automaton, "permits", None)
    if own is not None:
        return own(state, token, budget)
    if not automaton.check(state, token):
        return False
    if token in automaton.end_ids:
        return True
    after = automaton.step(state, token)
    left = NEVER if after is None else automaton.shortest(after)
    return left is None or left < budget


def one_by_one(automaton: Automaton, state: State, budget: int) -> Tensor:
    """The same, by a step along every allowed token."""
    mask = automaton.allowed(state).clone()
    for token in mask.nonzero()[:, 0].tolist():
        after = automaton.step(state, token)
        left = NEVER if after is None else automaton.shortest(after)
        mask[token] = token in automaton.end_ids or left is None or left < budget
    return mask
