"""Automata made of automata: all of them, one of them, one behind the other. The parts share vocabulary and ends."""

from __future__ import annotations

from functools import cached_property, reduce

import torch
from torch import Tensor

from segue.data import NEVER, Automaton
from segue.ops.automaton.base import Base, Moves, State, distances

MOST = 20_000  # states of an intersection whose exact distance is worked out


class _Combined(Base):
    """Parts that agree on the vocabulary and on what ends a text."""

    def __init__(self, *parts: Automaton) -> None:
        if len(parts) < 2:
            raise ValueError(f"{type(self).__name__} combines at least two automata")
        first = parts[0]
        for part in parts[1:]:
            if (part.vocab_size, part.end_ids) != (first.vocab_size, first.end_ids):
                raise ValueError(
                    f"{type(self).__name__}: a part over {part.vocab_size} tokens that ends at {sorted(part.end_ids)} "
                    f"and one over {first.vocab_size} that ends at {sorted(first.end_ids)} do not fit together"
                )
        super().__init__(first.vocab_size, first.end_ids)
        self.parts = parts

    def _listed(self, state: State) -> tuple[State | None, ...]:
        return state  # type: ignore[return-value]

    def _part_moves(self, number: int, state: State) -> Moves | None:
        part = self.parts[number]
        return part.moves(state) if isinstance(part, Base) else None


class Intersection(_Combined):
    """Every part accepts. States are the tuples of the parts' states. Where the parts can list their moves and the
    product is small, ways that lead nowhere are closed from the start; elsewhere they end in a dead end."""

    def start(self) -> State:
        return tuple(part.start() for part in self.parts)

    def next(self, state: State, token: int) -> State | None:
        after = tuple(part.step(s, token) for part, s in zip(self.parts, self._listed(state), strict=True))
        return None if None in after or not self._leads(after) else after

    def mask(self, state: State) -> Tensor:
        if self._exact is not None and (moves := self.moves(state)) is not None:
            return self._spread(moves, self._leads)
        masks = [part.allowed(s) for part, s in zip(self.parts, self._listed(state), strict=True)]
        return reduce(torch.logical_and, masks[1:], masks[0].clone())

    def accepts(self, state: State) -> bool:
        return all(part.accepting(s) for part, s in zip(self.parts, self._listed(state), strict=True))

    def distance(self, state: State) -> int | None:
        return None if self._exact is None else self._exact.get(state, NEVER)

    def met(self, state: State) -> int:
        return sum(part.progress(s) for part, s in zip(self.parts, self._listed(state), strict=True))

    def moves(self, state: State) -> Moves | None:
        found = [self._part_moves(i, s) for i, s in enumerate(self._listed(state))]
        known = [moves for moves in found if moves is not None]
        if len(known) < len(found):
            return None
        tokens = {token for own, _ in known for token in own}
        own: dict[int, State | None] = {}
        for token in tokens:
            after = tuple(theirs.get(token, rest) for theirs, rest in known)
            own[token] = None if None in after else after
        rests = tuple(rest for _, rest in known)
        return own, None if None in rests else rests

    @cached_property
    def _exact(self) -> dict[State, int] | None:
        listed = self.moves(self.start()) is not None
        return distances(self.start(), self._neighbours, self.accepts, MOST) if listed else None

    def _leads(self, state: State) -> bool:
        return self._exact is None or state in self._exact


class Union(_Combined):
    """At least one part accepts the text. States are the tuples of the parts' states, None for those that are out."""

    def start(self) -> State:
        return tuple(part.start() for part in self.parts)

    def next(self, state: State, token: int) -> State | None:
        pairs = zip(self.parts, self._listed(state), strict=True)
        after = tuple(None if s is None else part.step(s, token) for part, s in pairs)
        return after if any(s is not None for s in after) else None

    def mask(self, state: State) -> Tensor:
        masks = [p.allowed(s) for p, s in zip(self.parts, self._listed(state), strict=True) if s is not None]
        return reduce(torch.logical_or, masks[1:], masks[0].clone())

    def accepts(self, state: State) -> bool:
        return any(s is not None and p.accepting(s) for p, s in zip(self.parts, self._listed(state), strict=True))

    def distance(self, state: State) -> int | None:
        found = [p.shortest(s) for p, s in zip(self.parts, self._listed(state), strict=True) if s is not None]
        known = [far for far in found if far is not None]
        return min(known) if len(known) == len(found) else None

    def met(self, state: State) -> int:
        return max(p.progress(s) for p, s in zip(self.parts, self._listed(state), strict=True) if s is not None)

    def moves(self, state: State) -> Moves | None:
        out: Moves = ({}, None)
        found = [out if s is None else self._part_moves(i, s) for i, s in enumerate(self._listed(state))]
        known = [moves for moves in found if moves is not None]
        if len(known) < len(found):
            return None
        own: dict[int, State | None] = {}
        for token in {token for theirs, _ in known for token in theirs}:
            after = tuple(theirs.get(token, rest) for theirs, rest in known)
            own[token] = after if any(s is not None for s in after) else None
        rests = tuple(rest for _, rest in known)
        return own, rests if any(s is not None for s in rests) else None


class Concatenation(_Combined):
    """A text of the first part, then one of the second: `a, b, c` is a, then b, then c. States are (number of a part,
    its state) for every way in which the text so far can be cut."""

    def start(self) -> State:
        return self._closed({(0, self.parts[0].start())})

    def next(self, state: State, token: int) -> State | None:
        after = {(i, self.parts[i].step(s, token)) for i, s in self._ways(state)}
        return self._closed({(i, s) for i, s in after if s is not None}) or None

    def mask(self, state: State) -> Tensor:
        masks = [self.parts[i].allowed(s) for i, s in self._ways(state)]
        found = reduce(torch.logical_or, masks, torch.zeros(self.vocab_size, dtype=torch.bool))
        # Ways that can never be finished are none.
        for token in found.nonzero()[:, 0].tolist() if self._may_fail else []:
            found[token] = self.next(state, token) is not None
        return found

    def accepts(self, state: State) -> bool:
        last = len(self.parts) - 1
        return any(i == last and self.parts[i].accepting(s) for i, s in self._ways(state))

    def distance(self, state: State) -> int | None:
        found = [self._way(i, s) for i, s in self._ways(state)]
        known = [far for far in found if far is not None]
        return min(known, default=NEVER) if len(known) == len(found) else None

    def met(self, state: State) -> int:
        return max((self.parts[i].progress(s) for i, s in self._ways(state)), default=0)

    def moves(self, state: State) -> Moves | None:
        ways = list(self._ways(state))
        found = [self._part_moves(i, s) for i, s in ways]
        known = [moves for moves in found if moves is not None]
        if len(known) < len(found):
            return None
        numbers = [i for i, _ in ways]

        def after(goals: list[State | None]) -> State | None:
            return self._closed({(i, s) for i, s in zip(numbers, goals, strict=True) if s is not None}) or None

        tokens = {token for own, _ in known for token in own}
        own = {token: after([theirs.get(token, rest) for theirs, rest in known]) for token in tokens}
        return own, after([rest for _, rest in known])

    @cached_property
    def _may_fail(self) -> bool:
        return any(part.shortest(part.start()) == NEVER for part in self.parts)

    def _ways(self, state: State) -> frozenset[tuple[int, State]]:
        return state  # type: ignore[return-value]

    def _closed(self, ways: set[tuple[int, State]]) -> frozenset[tuple[int, State]]:
        """With the next part's start where a part may end; without ways that are known to lead nowhere."""
        queue = list(ways)
        while queue:
            i, s = queue.pop()
            if i + 1 < len(self.parts) and self.parts[i].accepting(s):
                more = (i + 1, self.parts[i + 1].start())
                if more not in ways:
                    ways.add(more)
                    queue.append(more)
        return frozenset(way for way in ways if self._way(*way) != NEVER)

    def _way(self, number: int, state: State) -> int | None:
        """Tokens until a way is at its end."""
        far = [self.parts[number].shortest(state)]
        far += [part.shortest(part.start()) for part in self.parts[number + 1 :]]
        known = [f for f in far if f is not None]
        if any(f >= NEVER for f in known):
            return NEVER
        return sum(known) if len(known) == len(far) else None
