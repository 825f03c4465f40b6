"""Aho-Corasick: all phrases that end at the last token read, by links to the longest suffix that starts a phrase."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Matcher:
    """Nodes are the prefixes of the phrases; node 0 is the empty one. The node after a text is its longest suffix that
    is such a prefix."""

    def __init__(self, phrases: Iterable[tuple[int, ...]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.link = [0]  # the longest proper suffix that is a node
        self.depth = [0]
        self.ending: list[int] = [0]  # bit i: phrase i ends here, also as a suffix
        for number, phrase in enumerate(phrases):
            node = 0
            for token in phrase:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.children)
                    self.children.append({})
                    self.link.append(0)
                    self.depth.append(self.depth[node] + 1)
                    self.ending.append(0)
                node = self.children[node][token]
            self.ending[node] |= 1 << number
        # goto[node]: where every token leads that does not lead back to node 0.
        self.goto: list[dict[int, int]] = [dict(children) for children in self.children]
        queue = deque(self.children[0].values())
        while queue:
            node = queue.popleft()
            self.ending[node] |= self.ending[self.link[node]]
            for token, child in self.children[node].items():
                self.link[child] = self.goto[self.link[node]].get(token, 0)
                queue.append(child)
            self.goto[node] = {**self.goto[self.link[node]], **self.children[node]}
