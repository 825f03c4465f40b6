"""Verbatim substrings: the text is a run of tokens of one of the sources.

A suffix automaton has one state per set of places at which a substring ends, so it reads any source in linear size
(Blumer et al. 1985). The sources stand behind one another with a separator of their own between them.
"""

from __future__ import annotations

from collections.abc import Collection

from segue.data import NEVER
from segue.ops.automaton.base import Moves, Sequences, State, Table


class Substring(Table):
    """States are (state of the suffix automaton, tokens so far as far as the limits ask). The text has at least
    `shortest_text` and at most `longest_text` tokens (None: any number)."""

    def __init__(
        self,
        vocab_size: int,
        end_ids: Collection[int],
        sources: Sequences,
        shortest_text: int = 1,
        longest_text: int | None = None,
    ) -> None:
        super().__init__(vocab_size, end_ids)
        if shortest_text < 0 or (longest_text is not None and longest_text < shortest_text):
            raise ValueError(f"a text of {shortest_text} to {longest_text} tokens: 0 <= shortest <= longest")
        self._least, self._most = shortest_text, longest_text
        listed = self._sequences(sources, "the source")
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length = [-1], [0]
        last = 0
        for number, source in enumerate(listed):
            for token in source:
                last = self._extend(last, token)
            last = self._extend(last, -1 - number)
        self._moves: list[dict[int, int]] = [{t: s for t, s in after.items() if t >= 0} for after in self._next]
        # Every transition leads to a longer string, so states in falling order of length know what follows them.
        self._reach = [0] * len(self._next)  # the most tokens that can follow
        for state in sorted(range(len(self._next)), key=lambda s: -self._length[s]):
            self._reach[state] = max((1 + self._reach[s] for s in self._moves[state].values()), default=0)

    def start(self) -> tuple[int, int]:
        return 0, 0

    def moves(self, state: State) -> Moves:
        at, count = self._parts(state)
        if count == self._most:
            return {}, None
        after = self._counted(count + 1)
        need = self._least - after
        return {t: (s, after) for t, s in self._moves[at].items() if self._reach[s] >= need}, None

    def accepts(self, state: State) -> bool:
        return self._parts(state)[1] >= self._least

    def distance(self, state: State) -> int:
        at, count = self._parts(state)
        need = max(self._least - count, 0)
        return need if need <= self._reach[at] else NEVER

    def met(self, state: State) -> int:
        return self._parts(state)[1]

    def _counted(self, count: int) -> int:
        """A count is kept as far as a limit depends on it, so that equal futures are equal states."""
        return min(count, self._least) if self._most is None else count

    def _extend(self, last: int, token: int) -> int:
        """Add a token behind the state of all that was read."""
        new = self._state({}, self._length[last] + 1)
        at = last
        while at >= 0 and token not in self._next[at]:
            self._next[at][token] = new
            at = self._link[at]
        if at < 0:
            self._link[new] = 0
            return new
        old = self._next[at][token]
        if self._length[old] == self._length[at] + 1:
            self._link[new] = old
            return new
        clone = self._state(dict(self._next[old]), self._length[at] + 1)
        self._link[clone] = self._link[old]
        self._link[old] = self._link[new] = clone
        while at >= 0 and self._next[at].get(token) == old:
            self._next[at][token] = clone
            at = self._link[at]
        return new

    def _state(self, after: dict[int, int], length: int) -> int:
        self._next.append(after)
        self._link.append(0)
        self._length.append(length)
        return len(self._next) - 1

    def _parts(self, state: State) -> tuple[int, int]:
        assert isinstance(state, tuple)
        return state
