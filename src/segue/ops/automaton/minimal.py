"""A closed list as the smallest graph of it: sequences that begin alike share their beginnings, and those that end
alike their ends.

The tree of all sequences is folded from its leaves: nodes from which the same can follow become one (Revuz 1992).
"""

from __future__ import annotations

from collections.abc import Collection

from segue.ops.automaton.base import Sequences, State
from segue.ops.automaton.nodes import Nodes
from segue.ops.automaton.trie import Trie


class Minimal(Nodes):
    """States are the nodes of the graph, numbered so that every edge leads to a smaller number. ValueError for an empty
    list."""

    def __init__(self, vocab_size: int, end_ids: Collection[int], sequences: Sequences) -> None:
        super().__init__(vocab_size, end_ids)
        trie = Trie(vocab_size, end_ids, sequences)
        self.longest: list[int] = []  # the most tokens that can follow a node
        known: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
        folded: dict[int, int] = {}  # node of the tree -> node of the graph
        for node in reversed(range(len(trie))):  # a child comes behind its parent
            below = {token: folded[child] for token, child in trie.children(node).items()}
            key = trie.accepts(node), tuple(sorted(below.items()))
            if key not in known:
                known[key] = len(self._children)
                self._children.append(dict(below))
                self._final.append(key[0])
                self._distance.append(trie.distance(node))
                self.longest.append(max((1 + self.longest[n] for n in below.values()), default=0))
            folded[node] = known[key]
        self._begin = folded[0]

    def start(self) -> int:
        return self._begin

    def met(self, state: State) -> int:
        """Tokens that need not be written any more, at least: banks of a beam search are those of equal remainders."""
        assert isinstance(state, int)
        return self.longest[self._begin] - self.longest[state]
