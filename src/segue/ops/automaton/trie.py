"""A closed list of token sequences: the text is one of them, then it ends."""

from __future__ import annotations

from collections.abc import Collection

from segue.data import NEVER
from segue.ops.automaton.base import Sequences, State
from segue.ops.automaton.nodes import Nodes


class Trie(Nodes):
    """States are the nodes of the tree of all sequences; a child has a larger number than its parent. ValueError for an
    empty list."""

    def __init__(self, vocab_size: int, end_ids: Collection[int], sequences: Sequences) -> None:
        super().__init__(vocab_size, end_ids)
        self._children, self._final = [{}], [False]
        self._depth = [0]
        listed = self._sequences(sequences, "the sequence")
        if not listed:
            raise ValueError("a closed list has at least one sequence")
        parents = [0]
        for sequence in listed:
            node = 0
            for token in sequence:
                child = self._children[node].get(token)
                if not isinstance(child, int):
                    child = len(self._children)
                    self._children[node][token] = child
                    self._children.append({})
                    self._final.append(False)
                    self._depth.append(self._depth[node] + 1)
                    parents.append(node)
                node = child
            self._final[node] = True
        # A child comes behind its parent, so that one pass from the end knows the nearest end of every node.
        self._distance = [0 if final else NEVER for final in self._final]
        for node in range(len(parents) - 1, 0, -1):
            self._distance[parents[node]] = min(self._distance[parents[node]], self._distance[node] + 1)

    def children(self, node: int) -> dict[int, int]:
        """The nodes below one, by their tokens."""
        return {token: child for token, child in self._children[node].items() if isinstance(child, int)}

    def start(self) -> int:
        return 0

    def met(self, state: State) -> int:
        assert isinstance(state, int)
        return self._depth[state]
