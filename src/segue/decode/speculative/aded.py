"""ADED: a trigram table that goes on learning from the text stands in for the model, and a tree search reads it.

T[(a, b)] holds the successors of two tokens with weights, from a corpus (cut to the likeliest 12) and from this text.
1. Each new trigram of the text adds `rate` to its weight, at most `cap`; nothing is renormalised.
2. Monte-Carlo tree search from the last two tokens: go down by the largest PUCT value
   W/N + (c1 + ln((N_parent + c2 + 1) / c2)) * P * sqrt(N_parent) / (1 + N), unvisited children first.
3. A leaf gets all of its successors, P their share of the weights; from there tokens are drawn by weight to `length`.
4. The reward of a path, 1 plus the sum of its shares, is added to every node on it; `iterations` times.
5. The `paths` most visited paths, each with its likeliest successor, make the tree of at most `nodes` nodes.
6. Verify: one draw of the target per node, which the greedy case is as well.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Speculative
from segue.decode.speculative.store.base import StoreError
from segue.decode.speculative.store.trigram import open_table
from segue.models.lm import LM
from segue.models.run import Run

Pair = tuple[int, int]
SECONDS = 20e-6  # allowed for an iteration: 2 were measured where little is learned, more successors cost more
MOST_KEYS, MOST_SUCCESSORS = 100_000, 64  # of the learned table


@dataclass(frozen=True)
class Aded(Speculative):
    """Drafts from word statistics that adapt to the text: no model; pays where texts of a kind repeat themselves."""

    card = Card(
        paper=Paper(
            id="2407.12021",
            title="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
            year=2024,
        ),
        claim=Claim(
            value=2.5, unit="speed-up", baseline="autoregressive", setting="HumanEval, MT-Bench and Alpaca, at best"
        ),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "tree attention", "a trigram table"),
        departs="every trigram is learned once, where the authors' code counts the last 16 anew each round; the reward "
        "looks at the new token; samples are verified by one draw per node, where the code redraws per path",
        check="spec",
    )

    table: str | None = None  # corpus table, made by `segue index table`
    keep: bool = True  # what was learned outlives the request (reset with reset_stores)
    iterations: int = 150  # of the search
    length: int = 4  # tokens of a path
    c1: float = 32.0  # exploration
    c2: float = 8.0  # how soon exploration grows with visits
    rate: float = 0.04  # added per occurrence
    cap: float = 3.0  # largest weight that learning reaches
    paths: int = 24  # most visited paths that are verified
    nodes: int = 64  # of the tree

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "length", "paths", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        for name in ("rate", "cap", "c2"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: above 0")
        if self.c1 < 0:
            raise ValueError(f"c1={self.c1} is not allowed: at least 0")

    def price(self, run: Run, tokens: int) -> float:
        return self.iterations * SECONDS

    def lacks(self, lm: LM) -> str:
        try:
            return open_table(self.table).lacks(lm) if self.table is not None else ""
        except StoreError as error:
            return str(error)

    def start(self, run: Run) -> Searching:
        corpus = open_table(self.table) if self.table is not None else None
        if corpus is not None and (reason := corpus.lacks(run.lm)):
            raise StoreError(reason)
        table = Table(corpus if corpus is not None else {})
        if self.keep:
            table = run.lm.stores.setdefault(f"aded:{corpus.digest if corpus is not None else ''}", table)
        return Searching(table, random.Random(run.settings.seed or 0))

    def propose(self, run: Run, state: Searching, budget: Budget) -> DraftTree:
        text = run.seen
        for end in range(max(state.seen, 2), run.settled):
            state.table.add((text[end - 2], text[end - 1]), text[end], self.rate, self.cap)
        state.seen = run.settled
        tree = DraftTree.root(text[-1])
        if len(text) < 2:
            return tree
        root = self.search((text[-2], text[-1]), state)
        children: dict[tuple[int, int], int] = {}
        for path in self.best(root, state.table):
            node = 0
            for step in path[: budget.depth]:
                key = node, step.pair[1]
                if key not in children:
                    if len(tree) > min(self.nodes, budget.nodes):
                        break
                    children[key] = tree.add(*key, score=min(step.share, 1.0), source="aded")
                node = children[key]
        return tree

    def search(self, pair: Pair, state: Searching) -> Node:
        """The search tree after all iterations."""
        root = Node(pair, 1.0)
        for _ in range(self.iterations):
            path, reward = [root], 1.0
            while path[-1].children and len(path) <= self.length:
                path.append(self._select(path[-1]))
                reward += path[-1].share
            leaf = path[-1]
            if leaf.children is None:
                leaf.children = expand(leaf.pair, state.table)
            if root.children == []:
                break  # nothing is known of these two tokens
            reward += self._roll_out(leaf.pair, self.length + 1 - len(path), state)
            for node in path:
                node.visits += 1
                node.total += reward
        return root

    def _select(self, parent: Node) -> Node:
        children = parent.children or []
        explore = self.c1 + math.log((parent.visits + self.c2 + 1) / self.c2) if self.c1 else 0.0
        explore *= math.sqrt(parent.visits)
        best, value = children[0], -1.0
        for child in children:
            if child.visits == 0:
                return child
            own = child.total / child.visits + explore * child.share / (1 + child.visits)
            if own > value:
                best, value = child, own
        return best

    def _roll_out(self, pair: Pair, steps: int, state: Searching) -> float:
        gained = 0.0
        for _ in range(steps):
            successors = state.table[pair]
            if not successors:
                break
            (token,) = state.random.choices(list(successors), list(successors.values()))
            gained += successors[token] / sum(successors.values())
            pair = pair[1], token
        return gained

    def best(self, root: Node, table: Table) -> list[list[Node]]:
        """The most visited paths, each longer by its likeliest successor."""
        ends: list[tuple[int, list[Node]]] = []

        def walk(path: list[Node]) -> None:
            visited = [child for child in (path[-1].children if path else root.children) or [] if child.visits]
            if path and not visited:
                ends.append((path[-1].visits, path))
            for child in visited:
                walk([*path, child])

        walk([])
        ends.sort(key=lambda end: -end[0])
        found = []
        for _, path in ends[: self.paths]:
            following = expand(path[-1].pair, table)
            found.append([*path, following[0]] if following else path)
        return found


class Corpus(Protocol):
    """What is known of two tokens, or the default: a mapped table, or a dictionary."""

    def get(self, pair: Pair, default: dict[int, float], /) -> Mapping[int, float]: ...


@dataclass
class Table:
    """Weights of successors: those learned from texts over those of a corpus."""

    corpus: Corpus
    learned: OrderedDict[Pair, dict[int, float]] = field(default_factory=OrderedDict)

    def __getitem__(self, pair: Pair) -> Mapping[int, float]:
        own = self.learned.get(pair)
        return own if own is not None else self.corpus.get(pair, {})

    def add(self, pair: Pair, token: int, rate: float, cap: float) -> None:
        own = self.learned.get(pair)
        if own is None:
            own = self.learned[pair] = dict(self.corpus.get(pair, {}))
        own[token] = min(own.get(token, 0.0) + rate, max(cap, own.get(token, 0.0)))
        self.learned.move_to_end(pair)
        if len(own) > MOST_SUCCESSORS:
            del own[min(own, key=lambda t: own[t])]
        if len(self.learned) > MOST_KEYS:
            self.learned.popitem(last=False)


@dataclass
class Searching:
    """The table at work in a run, how much of the text it has seen, and the source of the roll-outs."""

    table: Table
    random: random.Random  # shapes proposals only; never decides what is emitted
    seen: int = 0


@dataclass(slots=True)
class Node:
    """A place in the search tree."""

    pair: Pair
    share: float  # P: of its parent's successors
    visits: int = 0  # N
    total: float = 0.0  # W
    children: list[Node] | None = None


def expand(pair: Pair, table: Table) -> list[Node]:
    """All successors of two tokens, the likeliest first."""
    successors = table[pair]
    total = sum(successors.values())
    ranked = sorted(successors.items(), key=lambda item: (-item[1], item[0]))
    return [Node((pair[1], token), weight / total) for token, weight in ranked]
