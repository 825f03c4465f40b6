"""Automata whose states are numbered nodes: the edges of each, whether a text may end there, how far an end is."""

from __future__ import annotations

from collections.abc import Collection

from segue.ops.automaton.base import Moves, State, Table


class Nodes(Table):
    """Base of trees and graphs of a closed list, which fill the lists."""

    def __init__(self, vocab_size: int, end_ids: Collection[int]) -> None:
        super().__init__(vocab_size, end_ids)
        self._children: list[dict[int, State | None]] = []
        self._final: list[bool] = []
        self._distance: list[int] = []  # tokens to the nearest end

    def __len__(self) -> int:
        """Nodes."""
        return len(self._children)

    def moves(self, state: State) -> Moves:
        assert isinstance(state, int)
        return self._children[state], None

    def accepts(self, state: State) -> bool:
        assert isinstance(state, int)
        return self._final[state]

    def distance(self, state: State) -> int:
        assert isinstance(state, int)
        return self._distance[state]
