"""A graph whose edges are labelled with tokens: the text is the labels along a path from the start to a final node."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable

from segue.data import NEVER
from segue.ops.automaton.base import Moves, State, Table

Edge = tuple[Hashable, Iterable[int], Hashable]  # from, the tokens of its label (none: for nothing), to


class Graph(Table):
    """States are the sets of places in the graph where a text may have led: paths that begin alike are followed
    together. Cycles are allowed. ValueError where no final node can be reached."""

    def __init__(
        self,
        vocab_size: int,
        end_ids: Collection[int],
        edges: Iterable[Edge],
        start: Hashable,
        finals: Iterable[Hashable],
    ) -> None:
        super().__init__(vocab_size, end_ids)
        self._places: dict[Hashable, int] = {}
        self._labelled: list[dict[int, set[int]]] = []  # place -> token -> places
        self._silent: list[set[int]] = []  # place -> places behind empty labels
        begin = self._place(start)
        for origin, label, goal in edges:
            (tokens,) = self._sequences([label], "the label")
            at, to = self._place(origin), self._place(goal)
            for token in tokens[:-1]:
                between = self._place(object())
                self._labelled[at].setdefault(token, set()).add(between)
                at = between
            if tokens:
                self._labelled[at].setdefault(tokens[-1], set()).add(to)
            else:
                self._silent[at].add(to)
        self._finals = frozenset(self._place(final) for final in finals)
        self._far = self._distances()
        self._begin = self._closed({begin})
        if not self._begin:
            raise ValueError(f"no path leads from {start!r} to a final node")
        self._known: dict[frozenset[int], dict[int, State | None]] = {}

    def start(self) -> frozenset[int]:
        return self._begin

    def moves(self, state: State) -> Moves:
        assert isinstance(state, frozenset)
        if state not in self._known:
            union: dict[int, set[int]] = {}
            for place in state:
                for token, goals in self._labelled[place].items():
                    union.setdefault(token, set()).update(goals)
            closed = {token: self._closed(goals) for token, goals in union.items()}
            self._known[state] = {token: goals for token, goals in closed.items() if goals}
        return self._known[state], None

    def accepts(self, state: State) -> bool:
        assert isinstance(state, frozenset)
        return not state.isdisjoint(self._finals)

    def distance(self, state: State) -> int:
        assert isinstance(state, frozenset)
        return min(self._far[place] for place in state)

    def _place(self, name: Hashable) -> int:
        if name not in self._places:
            self._places[name] = len(self._places)
            self._labelled.append({})
            self._silent.append(set())
        return self._places[name]

    def _closed(self, places: set[int]) -> frozenset[int]:
        """With all places behind empty labels, without those from which nothing final is reached."""
        found, queue = set(places), list(places)
        while queue:
            more = self._silent[queue.pop()] - found
            found |= more
            queue += more
        return frozenset(place for place in found if self._far[place] < NEVER)

    def _distances(self) -> list[int]:
        """Fewest tokens to a final place, from every place."""
        before: list[list[tuple[int, int]]] = [[] for _ in self._labelled]  # (place, tokens of the way)
        for place, (labelled, silent) in enumerate(zip(self._labelled, self._silent, strict=True)):
            for goals in labelled.values():
                for goal in goals:
                    before[goal].append((place, 1))
            for goal in silent:
                before[goal].append((place, 0))
        far = [0 if place in self._finals else NEVER for place in range(len(before))]
        queue = deque(self._finals)
        while queue:  # steps of length 0 go to the front, so that the queue stays in order
            at = queue.popleft()
            for place, step in before[at]:
                if far[at] + step < far[place]:
                    far[place] = far[at] + step
                    (queue.append if step else queue.appendleft)(place)
        return far
