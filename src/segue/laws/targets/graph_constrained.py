"""The target of graph-constrained decoding: every legal output written down and scored by full forwards, networkx's
simple paths in order of length, and the published algorithm with plain lists, nothing kept and nothing shared."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.oracle import TableOracle
from segue.laws.worlds import World
from segue.models.lm import LM
from segue.models.run import Run
from segue.ops.automaton import Graph, Minimal, Trie

CLOSE = 1e-3
TOKENS = 9
LAYERS = 4
Text = tuple[int, ...]
Rows = Callable[[Text], list[float]]  # output -> (V,) log-probabilities, -inf for what the model's configuration bars
Costs = Callable[[Text], dict[int, float]]  # output -> cost of every label, END among them
END = -1


@dataclass(frozen=True)
class Words:
    """A word graph: from a node by a token to a node. The nodes stand in topological order, the start first."""

    edges: dict[Hashable, dict[int, Hashable]]
    finals: Set[Hashable]

    @property
    def start(self) -> Hashable:
        return next(iter(self.edges))

    def texts(self) -> list[Text]:
        """Every legal output, by walking all paths."""
        found: list[Text] = []
        ways: list[tuple[Text, Hashable]] = [((), self.start)]
        while ways:
            text, node = ways.pop()
            if node in self.finals:
                found.append(text)
            ways += [((*text, token), goal) for token, goal in self.edges[node].items()]
        return found

    def node(self, text: Text) -> Hashable:
        return functools.reduce(lambda node, token: self.edges[node][token], text, self.start)

    def tree(self) -> Words:
        """The same outputs without any ways that meet."""
        texts = self.texts()
        prefixes = sorted({text[:n] for text in texts for n in range(len(text) + 1)}, key=len)
        edges: dict[Hashable, dict[int, Hashable]] = {prefix: {} for prefix in prefixes}
        for prefix in prefixes[1:]:
            edges[prefix[:-1]][prefix[-1]] = prefix
        return Words(edges, frozenset(texts))


def hold(method: Any, world: World) -> dict[str, float]:
    """Both searches, both ways to count an edge, with ends of text and without. Raises LawBroken."""
    compared = 0
    for prompt in world.prompts[1:3]:
        rows = reader(world, prompt)
        first, letters = writable(world.lm, prompt)
        for ends in (frozenset(letters[-1:]), frozenset[int]()):
            words = layered([token for token in letters if token not in ends], first)
            with ending_at(world.lm, ends):
                for softmax, normalise in (("all", False), ("labels", False), ("all", True)):
                    form = replace(method, softmax=softmax, normalise=normalise)
                    compared += _compare(form, world, prompt, words, rows, ends)
    if isinstance(world.oracle, TableOracle):
        compared += _context_free(method, world)
    return {"tokens": compared}


def reader(world: World, prompt: list[int]) -> Rows:
    own = Run(world.lm, prompt, Settings(max_tokens=TOKENS))

    @functools.cache
    def rows(output: Text) -> list[float]:
        logp = world.oracle.logits_after(prompt, output).double().log_softmax(-1)
        found: list[float] = own.target.processed(logp, [*own.ids, *output]).tolist()
        return found

    return rows


def writable(lm: LM, prompt: list[int]) -> tuple[Text, list[int]]:
    """What a model's configuration forces at the beginning, and tokens that it lets follow."""
    run = Run(lm, prompt, Settings(max_tokens=TOKENS))

    def possible(ids: list[int]) -> list[int]:
        scores = run.target.processed(torch.zeros(lm.vocab_size), ids)
        return [token for token, score in enumerate(scores.tolist()) if score > -math.inf]

    begin = possible(run.ids)
    first = tuple(begin) if len(begin) == 1 else ()
    return first, possible([*run.ids, begin[0]])[:5]


def layered(letters: Sequence[int], first: Text = ()) -> Words:
    """Two nodes a layer, with ways that meet; outputs end in the last layer and at one node before."""
    edges: dict[Hashable, dict[int, Hashable]] = {"begin": dict.fromkeys(first, (0, 0))} if first else {}
    edges[0, 0] = {}
    for layer, side in itertools.product(range(LAYERS), range(2)):
        if layer == 0 and side == 1:
            continue
        mine = [token for place, token in enumerate(letters) if place == 0 or (place + layer + side) % 3]
        edges[layer, side] = {token: (layer + 1, (i + side * layer) % 2) for i, token in enumerate(mine)}
        if layer == 1 and len(mine) > 1:  # ways of different lengths meet
            edges[layer, side][mine[-1]] = (3, side)
    edges |= {(LAYERS, side): {} for side in range(2)}
    reached = set(list(edges)[:1])
    for node, after in edges.items():
        reached |= set(after.values()) if node in reached else set()
    edges = {node: after for node, after in edges.items() if node in reached}
    return Words(edges, reached & {(LAYERS, 0), (LAYERS, 1), (2, 0)})


def label_costs(words: Words, rows: Rows, ends: frozenset[int], softmax: str) -> Costs:
    """-log p of the labels that leave the node of an output."""

    def costs(output: Text) -> dict[int, float]:
        node, row = words.node(output), rows(output)
        p = {token: math.exp(row[token]) for token in words.edges[node]}
        if node in words.finals and ends:
            p[END] = sum(math.exp(row[end]) for end in ends)
        whole = sum(p.values()) if softmax == "labels" else 1.0
        found = {token: -math.log(mass / whole) for token, mass in p.items() if mass > 0}
        return {**found, END: 0.0} if node in words.finals and not ends else found

    return costs


def total(costs: Costs, text: Text) -> float:
    """Cost of a whole output."""
    return sum(costs(text[:n])[label] for n, label in enumerate((*text, END)))


def _compare(method: Any, world: World, prompt: list[int], words: Words, rows: Rows, ends: frozenset[int]) -> int:
    lm, costs = world.lm, label_costs(words, rows, ends, method.softmax)
    triples = [(a, [token], b) for a, after in words.edges.items() for token, b in after.items()]
    meeting = Graph(lm.vocab_size, ends, triples, words.start, words.finals)
    texts = words.texts()
    ranked = sorted(_rank(method, costs, text) for text in texts)
    compared = 0
    for automaton in (meeting, Minimal(lm.vocab_size, ends, texts)):
        form = replace(method, search="exact", held=2, together=3)
        compared += _answers(form, world, prompt, automaton, costs, ranked)
    tree = words.tree()
    if not method.normalise:
        by_networkx = list(itertools.islice(networkx_paths(tree, lambda node: costs(node)), method.paths))
        _near(method, by_networkx, ranked, "networkx and the enumeration")
        form = replace(method, search="graph")
        compared += _answers(form, world, prompt, Trie(lm.vocab_size, ends, texts), costs, by_networkx)
    form = replace(method, search="graph")
    compared += _answers(form, world, prompt, meeting, costs, [cost for cost, _ in published(form, words, costs)])
    return compared


def _answers(method: Any, world: World, prompt: list[int], automaton: Any, costs: Costs, best: list[float]) -> int:
    """The costs of what is found are the expected ones, and each is that of its own text."""
    settings = Settings(max_tokens=TOKENS, constraint=automaton)
    alone, together = (decode(world.lm, method, batch, settings)[0] for batch in ([prompt], [prompt, world.prompts[0]]))
    for answer in (alone, together):
        found = [-candidate.score for candidate in answer.candidates or []]
        _near(method, found, best, f"what it found on {prompt} ({automaton}) and the expected")
        texts = [tuple(t for t in c.tokens if t not in automaton.end_ids) for c in answer.candidates or []]
        own = [_rank(method, costs, text) for text in texts]
        _near(method, found, own, f"the costs it gives on {prompt} and those of its outputs {texts}")
        if len(set(texts)) < len(texts) or answer.tokens != (answer.candidates or [])[0].tokens:
            raise LawBroken(f"{method} on {prompt}: {answer.tokens} out of {texts}")
    return sum(map(len, texts))


def _rank(method: Any, costs: Costs, text: Text) -> float:
    return total(costs, text) / (len(text) + 2 if method.normalise else 1)


def _near(method: Any, found: list[float], expected: list[float], what: str) -> None:
    most = min(method.paths, len(expected))
    if len(found) < most or any(abs(a - b) > CLOSE for a, b in zip(found[:most], expected[:most], strict=True)):
        raise LawBroken(f"{method}: {what} differ: {found} and {expected[:most]}")


def _context_free(method: Any, world: World) -> int:
    """Where costs do not depend on the way, the graph's k shortest paths are networkx's."""
    lm: Any = copy.copy(world.lm)
    lm.table = lm.table[:1].expand_as(lm.table).clone()
    flat, prompt = World(lm, TableOracle(lm), world.prompts), world.prompts[0]
    rows, compared = reader(flat, prompt), 0
    for ends in (frozenset([lm.vocab_size - 1]), frozenset[int]()):
        words = layered([token for token in range(lm.vocab_size) if token not in ends])
        triples = [(a, [token], b) for a, after in words.edges.items() for token, b in after.items()]
        automaton = Graph(lm.vocab_size, ends, triples, words.start, words.finals)
        costs = label_costs(words, rows, ends, "all")
        some = {words.node(text[:n]): costs(text[:n]) for text in words.texts() for n in range(len(text) + 1)}
        for search, paths in itertools.product(("graph", "exact"), (1, 5, 60)):
            form = replace(method, search=search, paths=paths, softmax="all", normalise=False)
            best = list(itertools.islice(networkx_paths(words, some.__getitem__), paths))
            with ending_at(lm, ends):
                compared += _answers(form, flat, prompt, automaton, costs, best)
    return compared


def networkx_paths(words: Words, costs: Callable[[Any], dict[int, float]]) -> Iterator[float]:
    """Costs of all paths in rising order, by networkx; a node between makes an edge of its own of every label."""
    import networkx as nx

    graph = nx.DiGraph()
    for node, after in words.edges.items():
        for label, cost in (costs(node) if after or node in words.finals else {}).items():
            graph.add_edge(node, (node, "by", label), weight=cost)
            graph.add_edge((node, "by", label), "end" if label == END else after[label], weight=0.0)
    for path in nx.shortest_simple_paths(graph, words.start, "end", weight="weight"):
        yield nx.path_weight(graph, path, "weight")


def published(method: Any, words: Words, costs: Costs) -> list[tuple[float, Text]]:
    """The k shortest paths where a node keeps one history (Richardson, Berant and Kuhn 2018, with Yen 1971)."""
    order = list(words.edges)

    def path(root: Text, banned: set[int]) -> tuple[float, Text] | None:
        begun = sum(costs(root[:n])[token] for n, token in enumerate(root))
        kept: dict[Hashable, tuple[float, Text]] = {words.node(root): (begun, root)}
        whole = []
        for node in order:
            if node in kept:
                cost, text = kept[node]
                for label, more in costs(text).items():
                    if text == root and label in banned:
                        continue
                    if label == END:
                        whole.append(((cost + more) / (len(text) + 2 if method.normalise else 1), text))
                        continue
                    goal = words.edges[node][label]
                    kept[goal] = min(kept.get(goal, (math.inf, ())), (cost + more, (*text, label)))
        return min(whole, default=None)

    first = path((), set())
    candidates = {first} - {None}
    accepted: list[tuple[float, Text]] = []
    while candidates and len(accepted) < method.paths:
        best = min(c for c in candidates if c is not None)
        candidates.remove(best)
        accepted.append(best)
        for spur in range(len(best[1]) + 1):
            root = best[1][:spur]
            banned = {(*text, END)[spur] for _, text in accepted if text[:spur] == root}
            found = path(root, banned)
            if found is not None and found[1] not in [text for _, text in accepted]:
                candidates.add(found)
    return accepted
