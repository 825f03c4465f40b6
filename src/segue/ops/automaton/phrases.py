"""Demanded phrases: each must occur as a run of tokens, in any order, overlapping if it comes so."""

from __future__ import annotations

from collections.abc import Collection

from segue.data import NEVER
from segue.ops.automaton.base import Moves, Sequences, State, Table, distances
from segue.ops.automaton.matcher import Matcher

MOST = 20_000  # states whose exact distance is worked out


class Phrases(Table):
    """States are (phrases met as bits, node of an Aho-Corasick matcher over all of them): its links are those of
    Knuth-Morris-Pratt, so that a broken match falls back to the longest one that is still under way (A A A B has
    A A B). `progress` is the number of tokens of phrases met, and of the longest unmet one that is under way (Post and
    Vilar 2018, arXiv:1804.06609)."""

    def __init__(self, vocab_size: int, end_ids: Collection[int], phrases: Sequences) -> None:
        super().__init__(vocab_size, end_ids)
        self.phrases = list(dict.fromkeys(p for p in self._sequences(phrases, "the phrase") if p))
        self._all = (1 << len(self.phrases)) - 1
        self._matcher = Matcher(self.phrases)
        # Phrases that a node is a prefix of.
        self._begun = [0] * len(self._matcher.children)
        for number, phrase in enumerate(self.phrases):
            node = 0
            for token in phrase:
                node = self._matcher.children[node][token]
                self._begun[node] |= 1 << number
        small = (1 << len(self.phrases)) * len(self._begun) <= MOST
        self._exact = distances(self.start(), self._neighbours, self.accepts, MOST) if small else None

    def start(self) -> tuple[int, int]:
        return 0, 0

    def moves(self, state: State) -> Moves:
        met, node = self._parts(state)
        ending = self._matcher.ending
        return {t: (met | ending[n], n) for t, n in self._matcher.goto[node].items()}, (met, 0)

    def next(self, state: State, token: int) -> State | None:
        met, node = self._parts(state)
        after = self._matcher.goto[node].get(token, 0)
        return met | self._matcher.ending[after], after

    def accepts(self, state: State) -> bool:
        return self._parts(state)[0] == self._all

    def distance(self, state: State) -> int:
        """Exact, or for many phrases that of writing the unmet ones one after the other."""
        if self._exact is not None:
            return self._exact.get(state, NEVER)
        met, node = self._parts(state)
        unmet = sum(len(p) for i, p in enumerate(self.phrases) if not met >> i & 1)
        return unmet - self._under_way(met, node)

    def met(self, state: State) -> int:
        met, node = self._parts(state)
        done = sum(len(p) for i, p in enumerate(self.phrases) if met >> i & 1)
        return done + self._under_way(met, node)

    def _under_way(self, met: int, node: int) -> int:
        """Tokens of the longest unmet phrase that is under way."""
        while node and not self._begun[node] & ~met:
            node = self._matcher.link[node]
        return self._matcher.depth[node]

    def _parts(self, state: State) -> tuple[int, int]:
        assert isinstance(state, tuple)
        return state
