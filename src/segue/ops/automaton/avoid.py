"""Banned phrases: none of them may occur anywhere in the text, overlapping whatever."""

from __future__ import annotations

from collections.abc import Collection

from segue.ops.automaton.base import Moves, Sequences, State, Table
from segue.ops.automaton.matcher import Matcher


class Avoid(Table):
    """States are the nodes of an Aho-Corasick matcher. Every text without a banned phrase is accepted. ValueError for
    an empty phrase, which every text has."""

    def __init__(self, vocab_size: int, end_ids: Collection[int], phrases: Sequences) -> None:
        super().__init__(vocab_size, end_ids)
        banned = self._sequences(phrases, "the phrase")
        if () in banned:
            raise ValueError("an empty phrase cannot be banned: every text has it")
        matcher = Matcher(banned)
        self._moves: list[dict[int, State | None]] = [
            {token: None if matcher.ending[node] else node for token, node in goto.items()} for goto in matcher.goto
        ]

    def start(self) -> int:
        return 0

    def moves(self, state: State) -> Moves:
        assert isinstance(state, int)
        return self._moves[state], 0

    def accepts(self, state: State) -> bool:
        return True

    def distance(self, state: State) -> int:
        return 0
