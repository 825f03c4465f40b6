"""Lookahead decoding: Jacobi iterations on a window of future tokens, harvested for n-grams while decoding goes on.

The window has N-1 rows of W columns; row l, column j guesses the token l + j places after the current one and was
computed from row l-1, column j. Column 0 of row 0 is the current token. Per round:
1. Build one tree: the G n-grams known to follow the current token, and the window as scored-only nodes, where row l,
   column j hangs from row l-1, column j, and row 0 is a chain.
2. One forward. The n-gram branch is verified like any draft.
3. The arg-max after the last row is a new row; each column now spells an n-gram (row 0 .. N-2, new): it joins the pool
   of its first token (the G most recent are kept).
4. Drop row 0; the new row is the last. In the first N-2 rounds rows are only added: every column moves one place
   instead, so row 0 starts with W+N-3 tokens drawn from the prompt.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, field

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.run import Run


@dataclass(slots=True)
class Window:
    """State of one run: the window, the n-gram pool, and where the window lies in the last tree."""

    rows: list[list[int]]  # row 0 without its column 0, which is the current token
    random: random.Random  # fills row 0 and replaces end-of-text; never decides what is emitted
    pool: dict[int, OrderedDict[tuple[int, ...], None]] = field(default_factory=dict)
    nodes: list[list[int]] = field(default_factory=list)  # tree nodes of every row, column 0 included
    pooled: int = 0  # ids whose n-grams were pooled from the text


@dataclass(frozen=True)
class Lookahead(Speculative):
    """No draft model and no matching: the model's own parallel guesses become n-grams. Costs a wide forward."""

    card = Card(
        paper=Paper(
            id="2402.02057",
            title="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
            year=2024,
        ),
        claim=Claim(value=1.8, unit="speed-up", baseline="autoregressive", setting="MT-Bench, at best"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "tree attention"),
        departs="n-grams that share a prefix share nodes",
        check="spec",
    )

    free = False

    window: int = 7  # W: columns; 0 switches the window off
    level: int = 5  # N: n-gram length
    guesses: int = 7  # G: n-grams verified per round, and kept per first token
    prompt_pool: bool = False  # also pool the n-grams of the text so far

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("window", 0), ("level", 2), ("guesses", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {least}")

    def price(self, run: Run, tokens: int) -> float:
        rows = self.window * (self.level - 1) if self.window else 0
        return run.step_seconds(1 + rows) - run.step_seconds(1)

    def start(self, run: Run) -> Window:
        source = random.Random(run.settings.seed or 0)
        first = [source.choice(run.seen) for _ in range(self.window + self.level - 3)] if self.window else []
        return Window([first], source)

    def propose(self, run: Run, state: Window, budget: Budget) -> DraftTree:
        if self.prompt_pool:
            for end in range(max(state.pooled, self.level), run.settled + 1):
                self._pool(state, tuple(run.seen[end - self.level : end]))
            state.pooled = run.settled + 1
        known = list(reversed(state.pool.get(run.ids[-1], {})))
        paths = [guess[: budget.depth] for guess in known[: self.guesses]]
        tree = DraftTree.root(run.ids[-1])
        # The window comes first: trimming the guesses then leaves its node numbers as they are.
        state.nodes = self._add_window(tree, state.rows) if self.window else []
        tree.graft(paths, source="lookahead")
        return tree

    def _add_window(self, tree: DraftTree, rows: list[list[int]]) -> list[list[int]]:
        nodes = [[0]]
        for token in rows[0]:
            nodes[0].append(tree.add(nodes[0][-1], token, scored_only=True))
        for row in rows[1:]:
            above = nodes[-1]
            nodes.append([tree.add(above[j], token, scored_only=True) for j, token in enumerate(row)])
        return nodes

    def observe(self, run: Run, state: Window, outcome: Outcome) -> None:
        nodes, state.nodes = state.nodes, []
        if not nodes:  # no window, or somebody else's tree
            return
        tokens = [[outcome.tree.tokens[node] for node in row] for row in nodes]
        argmax = outcome.scores.argmax()
        new = [argmax[node] for node in nodes[-1]]
        new = [state.random.choice(run.seen) if token in run.lm.eos_ids else token for token in new]
        if len(tokens) < self.level - 1:  # still filling: every column moves one place
            state.rows = [tokens[0][2:], *(row[1:] for row in tokens[1:]), new[1:]]
            return
        for j, last in enumerate(new):
            self._pool(state, (*(row[j] for row in tokens), last))
        state.rows = [*tokens[1:], new]
        state.rows[0] = state.rows[0][1:]  # its column 0 is the current token

    def _pool(self, state: Window, ngram: tuple[int, ...]) -> None:
        known = state.pool.setdefault(ngram[0], OrderedDict())
        known[ngram[1:]] = None
        known.move_to_end(ngram[1:])
        if len(known) > self.guesses:
            known.popitem(last=False)
