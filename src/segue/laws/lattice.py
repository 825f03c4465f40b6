"""The published lattice search in plain loops over full forwards, its graph kept by networkx and its texts listed one
by one: what lattices are held to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np

from segue.laws.base import LawBroken

Text = tuple[int, ...]
LogP = Callable[[Text], Any]  # output -> (V,) log-probabilities


def greedy_text(log_p: LogP, ends: set[int], limit: int) -> Text:
    """The likeliest token at every place."""
    text: Text = ()
    while not text or (text[-1] not in ends and len(text) < limit):
        text += (int(np.argmax(log_p(text))),)
    return text


def logp_of(log_p: LogP, text: Text) -> float:
    """The sum over all tokens of a text."""
    return sum(float(log_p(text[:i])[token]) for i, token in enumerate(text))


@dataclass
class Naive:
    """The published search. Nodes are numbered as they are made; edges carry log-probabilities."""

    method: Any
    log_p: LogP
    ends: set[int]
    limit: int
    graph: Any = field(default_factory=nx.DiGraph)
    text: dict[int, Text] = field(default_factory=lambda: {0: ()})  # with which a node was made
    parent: dict[int, int] = field(default_factory=dict)
    alias: dict[int, int] = field(default_factory=dict)
    registered: list[int] = field(default_factory=list)
    waiting: list[tuple[float, int, Text, int]] = field(default_factory=list)  # minus worth, order, text, parent
    greedy: Text = ()
    merges: int = 0

    def over(self, text: Text) -> bool:
        return text[-1] in self.ends or len(text) == self.limit

    def worth(self, logp: float, length: int) -> float:
        return float(logp / length**self.method.length_penalty)

    def real(self, node: int) -> int:
        return self.real(self.alias[node]) if node in self.alias else node

    def search(self) -> None:
        self.graph.add_node(0)
        self.greedy = greedy_text(self.log_p, self.ends, self.limit)
        going, spent, order = [], 0, 0
        reading: list[tuple[Text, int]] = [((), 0)]
        while True:
            for text, node in reading:
                row = self.log_p(text)
                ranked = sorted(range(len(row)), key=lambda token: -row[token])[: self.method.k]
                children = [(*text, token) for token in ranked if row[token] > -math.inf]
                if children:
                    first = self.place(children[0], node)
                    if first is not None and not self.over(children[0]):
                        going.append((children[0], first))
                for child in children[1:]:
                    order += 1
                    score = self.worth(logp_of(self.log_p, child), len(child))
                    self.waiting.append((-score, order, child, node))
            left = self.method.calls - spent
            while self.waiting:
                best = min(self.waiting)
                if not self.over(best[2]) and len(going) >= min(self.method.lanes, left):
                    break
                self.waiting.remove(best)
                at = self.place(best[2], best[3])
                if at is not None and not self.over(best[2]):
                    going.append((best[2], at))
            leads = any(self.greedy[: len(text)] == text for text, _ in going)
            reading, going = going[: max(left, int(leads))], []
            spent += len(reading)
            if not reading:
                return

    def place(self, text: Text, parent: int) -> int | None:
        greedy = self.greedy[: len(text)] == text
        if parent in self.alias and not greedy:
            return None
        node, before = len(self.text), self.real(parent)
        self.text[node], self.parent[node] = text, before
        self.graph.add_edge(before, node, logp=float(self.log_p(text[:-1])[text[-1]]))
        n = self.method.ngram
        if self.method.merge == "none" or len(text) < n:
            return node
        for other in [] if greedy else self.registered:
            there = self.text[other]
            alike = there[-n:] == text[-n:] and abs(len(there) - len(text)) < self.method.gap
            if alike and other not in self.alias and not self.circle(node, other):
                self.merge(node, other)
                return None
        if len(text) < self.limit or text[-1] in self.ends:
            self.registered.append(node)
        return node

    def circle(self, one: int, other: int) -> bool:
        return bool(nx.has_path(self.graph, one, other) or nx.has_path(self.graph, other, one))

    def merge(self, node: int, other: int) -> None:
        pairs = [(self.real(self.parent[node]), self.real(self.parent[other]))]
        self.unite(node, other)
        while self.method.merge == "zip":
            one, two = pairs[-1]
            if not one or not two or self.circle(one, two) or self.text[one][-1] != self.text[two][-1]:
                return
            pairs.append((self.real(self.parent[one]), self.real(self.parent[two])))
            self.unite(one, two)

    def unite(self, node: int, other: int) -> None:
        for before, _, data in list(self.graph.in_edges(node, data=True)):
            if not self.graph.has_edge(before, other):
                self.graph.add_edge(before, other, **data)
        for _, after, data in list(self.graph.out_edges(node, data=True)):
            if not self.graph.has_edge(other, after):
                self.graph.add_edge(other, after, **data)
        self.graph.remove_node(node)
        self.alias[node] = other
        self.merges += 1

    def paths(self) -> list[tuple[Text, float]]:
        """All texts with the sums of their edges."""
        found = []
        for path in nx.all_simple_paths(self.graph, 0, [n for n in self.graph if n], cutoff=self.limit):
            text = tuple(self.text[node][-1] for node in path[1:])
            if self.over(text):
                pairs = itertools.pairwise(path)
                found.append((text, sum(self.graph.edges[pair]["logp"] for pair in pairs)))
        return found

    def answers(self, paths: list[tuple[Text, float]]) -> list[tuple[Text, float]]:
        """The candidates with what they are worth."""
        stated: dict[Text, float] = {}
        for text, logp in paths:
            stated[text] = max(logp, stated.get(text, -math.inf))
        ranked = sorted(stated, key=lambda text: -self.worth(stated[text], len(text)))
        chosen = [self.greedy, *(text for text in ranked if text != self.greedy)][: self.method.results + 1]
        scored = [(text, self.worth(logp_of(self.log_p, text), len(text))) for text in chosen]
        allowed = [pair for pair in scored if pair[1] > -math.inf]
        return sorted(allowed, key=lambda pair: -pair[1])[: self.method.results]


def listed(lattice: dict[str, Any], most: int) -> list[tuple[Text, float]]:
    """All texts of an exported lattice with the sums of their edges, by networkx."""
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(lattice["edges"], weight="logp")
    if not nx.is_directed_acyclic_graph(graph):
        raise LawBroken("the lattice has a circle")
    ends, cuts = set(lattice["ends"]), set(lattice["cuts"])
    found = []
    for path in nx.all_simple_paths(graph, 0, ends | cuts, cutoff=most) if lattice["edges"] else ():
        if path[-1] in ends or len(path) - 1 == most:
            pairs = itertools.pairwise(path)
            text = tuple(lattice["tokens"][node] for node in path[1:])
            found.append((text, sum(graph.edges[pair]["logp"] for pair in pairs)))
    return found
