"""A lattice of texts: a directed graph without cycles, in which texts that were found to go on alike share nodes.

Node 0 is the empty text, every other node one token. A *text* of the lattice is a path from node 0 of at most `most`
tokens that leads to a node where texts end, or that has all `most` tokens and may be cut there. Since nodes that were
merged have paths of several lengths, everything is computed level by level: level i holds what tokens i can be.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

STATES = 50_000  # sets of nodes of one level; with more the distinct texts are not counted


@dataclass(frozen=True, slots=True)
class Path:
    """A text of the lattice. `logp` is the sum of its edges, each of which was scored behind one text that led there:
    that is an approximation wherever the path came together from several."""

    nodes: tuple[int, ...]  # without the root
    tokens: tuple[int, ...]
    logp: float


@dataclass(slots=True)
class _Node:
    token: int
    origin: int  # the node that it was made behind
    length: int  # tokens of the text with which it was made, its own included
    over: bool  # a text ends here
    cut: bool  # a text that has no room for more may be cut here
    before: dict[int, float] = field(default_factory=dict)  # node -> log-probability of this token behind it
    after: set[int] = field(default_factory=set)


class Dag:
    """The graph while it grows and what can be asked of it. Names of nodes that were merged away stay good."""

    def __init__(self) -> None:
        self._nodes = [_Node(-1, 0, 0, False, False)]
        self._into: dict[int, int] = {}  # a node that was merged away -> the one that took its place
        self.merges = 0

    @classmethod
    def of(cls, data: dict[str, Any]) -> Dag:
        """The lattice that `as_dict` has written; its nodes keep the numbers that they have there."""
        dag, ends, cuts = cls(), set(data["ends"]), set(data["cuts"])
        for node, token in enumerate(data["tokens"][1:], 1):
            dag._nodes.append(_Node(token, 0, 0, node in ends, node in cuts))
        for before, node, logp in data["edges"]:
            dag._nodes[node].before[before] = logp
            dag._nodes[before].after.add(node)
        return dag

    def __len__(self) -> int:
        """Nodes that were not merged away, the root included."""
        return len(self._nodes) - len(self._into)

    def add(self, parent: int, token: int, logp: float, *, over: bool = False, cut: bool = True) -> int:
        """A new node behind another one."""
        parent = self.find(parent)
        node = len(self._nodes)
        self._nodes.append(_Node(token, parent, self._nodes[parent].length + 1, over, cut, {parent: logp}))
        self._nodes[parent].after.add(node)
        return node

    def find(self, node: int) -> int:
        """The node that stands for this one."""
        while node in self._into:
            node = self._into[node]
        return node

    def token(self, node: int) -> int:
        return self._nodes[node].token

    def length(self, node: int) -> int:
        """Tokens of the text with which a node was made."""
        return self._nodes[node].length

    def origin(self, node: int) -> int:
        """What stands for the node that this one was made behind; the root is its own."""
        return self.find(self._nodes[node].origin)

    def related(self, one: int, other: int) -> bool:
        """Whether they are the same node or a path leads from one to the other: merging them would close a circle."""
        return self._leads(one, other) or self._leads(other, one)

    def join(self, node: int, other: int) -> None:
        """Merge `node` into `other`, which keeps its name. Where both are joined to a third, its edge to `other` stays.
        ValueError where their tokens differ or a circle would be closed."""
        mine, theirs = self._nodes[node], self._nodes[other]
        if mine.token != theirs.token or mine.over != theirs.over or self.related(node, other):
            raise ValueError(f"node {node} cannot be merged into {other}: they differ, or one leads to the other")
        for before, logp in mine.before.items():
            self._nodes[before].after.remove(node)
            self._nodes[before].after.add(other)
            theirs.before.setdefault(before, logp)
        for after in mine.after:
            edges = self._nodes[after].before
            edges.setdefault(other, edges.pop(node))
            theirs.after.add(after)
        mine.before, mine.after = {}, set()
        self._into[node] = other
        self.merges += 1

    def _leads(self, start: int, goal: int) -> bool:
        seen, waiting = {goal}, [goal]
        while waiting:
            node = waiting.pop()
            if node == start:
                return True
            for before in self._nodes[node].before:
                if before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return False

    def paths(self, most: int) -> int:
        """Texts of the lattice, those that are spelled alike counted one by one."""
        levels = self._levels(most)
        total, counts = 0, {0: 1}
        for level, nodes in enumerate(levels[1:], 1):
            counts = {n: sum(counts[p] for p in self._nodes[n].before if p in levels[level - 1]) for n in nodes}
            total += sum(counts[n] for n in nodes if self._ends(n, level, most))
        return total

    def texts(self, most: int) -> int | None:
        """Distinct texts, by following all nodes at once that a text can stand for; None where that are too many."""
        levels = self._levels(most)
        total, counts = 0, {frozenset([0]): 1}
        for level, nodes in enumerate(levels[1:], 1):
            following: dict[frozenset[int], int] = defaultdict(int)
            for state, count in counts.items():
                by_token: dict[int, set[int]] = defaultdict(set)
                for node in state:
                    for after in self._nodes[node].after & nodes:
                        by_token[self._nodes[after].token].add(after)
                for group in by_token.values():
                    following[frozenset(group)] += count
            if len(following) > STATES:
                return None
            counts = dict(following)
            total += sum(c for state, c in counts.items() if any(self._ends(n, level, most) for n in state))
        return total

    def best(self, count: int, most: int, worth: Callable[[float, int], float]) -> list[Path]:
        """The paths with the largest `worth` of log-probability and length, best first. Exact where, among paths of one
        length, the more probable one is worth more."""
        levels = self._levels(most)
        tails: dict[int, list[_Tail]] = {0: [_Tail(0.0, 0, None)]}
        whole: list[tuple[float, _Tail]] = []
        for level, nodes in enumerate(levels[1:], 1):
            following = {}
            for node in sorted(nodes):
                longer = (
                    _Tail(tail.logp + logp, node, tail)
                    for before, logp in self._nodes[node].before.items()
                    for tail in tails.get(before, ())
                )
                following[node] = heapq.nlargest(count, longer, key=lambda tail: tail.logp)
                if self._ends(node, level, most):
                    whole += [(worth(tail.logp, level), tail) for tail in following[node]]
            tails = following
        return [self._path(tail) for _, tail in heapq.nlargest(count, whole, key=lambda pair: pair[0])]

    def nearest(self, reference: Sequence[int], most: int) -> tuple[Path, int] | None:
        """The path with the smallest edit distance (Levenshtein, in tokens) to a reference, of equal ones the most
        probable, and the distance; None where there is no text."""
        levels = self._levels(most)
        start = _Tail(0.0, 0, None)
        rows = {0: [(j, 0.0, start) for j in range(len(reference) + 1)]}  # cost, minus log-probability, path
        found: list[tuple[int, float, _Tail]] = []
        for level, nodes in enumerate(levels[1:], 1):
            following: dict[int, list[tuple[int, float, _Tail]]] = {}
            for node in sorted(nodes):
                row = following[node] = []
                for j in range(len(reference) + 1):
                    options = [(row[-1][0] + 1, *row[-1][1:])] if j else []  # a token of the reference is left out
                    for before, logp in self._nodes[node].before.items():
                        if before not in rows:
                            continue
                        places = [(j, 1)]  # this token is put in
                        if j:  # or it stands for one of the reference
                            places.append((j - 1, int(self._nodes[node].token != reference[j - 1])))
                        for place, wrong in places:
                            cost, minus, tail = rows[before][place]
                            options.append((cost + wrong, minus - logp, _Tail(tail.logp + logp, node, tail)))
                    row.append(min(options, key=lambda cell: cell[:2]))
                if self._ends(node, level, most):
                    found.append(row[-1])
            rows = following
        if not found:
            return None
        distance, _, tail = min(found, key=lambda cell: cell[:2])
        return self._path(tail), distance

    def as_dict(self, most: int) -> dict[str, Any]:
        """What lies on a text, for JSON: tokens of the nodes (-1 for the root), the nodes where texts end, those where
        they may be cut, and [from, to, log-probability] of every edge. Edges lead from smaller to larger numbers."""
        levels = self._levels(most)
        used = set().union(*levels)
        order = self._sorted(used)
        number = {node: i for i, node in enumerate(order)}
        edges = {
            (number[before], number[node]): self._nodes[node].before[before]
            for level, nodes in enumerate(levels[1:], 1)
            for node in nodes
            for before in self._nodes[node].before
            if before in levels[level - 1]
        }
        return {
            "tokens": [self._nodes[node].token for node in order],
            "ends": [number[node] for node in order if self._nodes[node].over],
            "cuts": sorted(number[n] for n in (levels[most] if most < len(levels) else ()) if not self._nodes[n].over),
            "edges": [[start, end, logp] for (start, end), logp in sorted(edges.items())],
        }

    def _ends(self, node: int, level: int, most: int) -> bool:
        known = self._nodes[node]
        return known.over or (known.cut and level == most)

    def _levels(self, most: int) -> list[set[int]]:
        """By length: the nodes that a text can have there, of those texts only that come to an end."""
        levels: list[set[int]] = [{0}]
        while levels[-1] and len(levels) <= most:
            levels.append({after for node in levels[-1] for after in self._nodes[node].after})
        for level in reversed(range(len(levels))):
            behind = levels[level + 1] if level + 1 < len(levels) else set()
            levels[level] = {
                n for n in levels[level] if (n and self._ends(n, level, most)) or self._nodes[n].after & behind
            }
        return levels

    def _sorted(self, nodes: Iterable[int]) -> list[int]:
        """Nodes such that every edge leads forward; of several orders the one of their numbers."""
        among = set(nodes)
        missing = {n: len(self._nodes[n].before.keys() & among) for n in among}
        ready = [n for n, count in missing.items() if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            node = heapq.heappop(ready)
            order.append(node)
            for after in self._nodes[node].after & among:
                missing[after] -= 1
                if missing[after] == 0:
                    heapq.heappush(ready, after)
        return order

    def _path(self, tail: _Tail) -> Path:
        nodes = []
        last: _Tail | None = tail
        while last is not None and last.node:
            nodes.append(last.node)
            last = last.rest
        nodes.reverse()
        return Path(tuple(nodes), tuple(self._nodes[n].token for n in nodes), tail.logp)


@dataclass(frozen=True, slots=True)
class _Tail:
    """A path, read backwards."""

    logp: float
    node: int
    rest: _Tail | None
