"""DReSD: the draft is what followed where the model was in a like state, so that paraphrases are found as well.

1. Offline: the model reads a corpus, best its own answers to prompts of the domain; key of position i: its last hidden
   state, standardised, projected by PCA, normalised; value: tokens i+1 .. i+L (store/dense.py; `segue index build`).
2. Online: the last hidden state at the last accepted position, from the verification pass, projected the same way.
3. Take the N nearest keys; keep the hits whose first token is the one that the model has just produced.
4. Put the rest of their values into a trie, verified in one forward with tree attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.decode.speculative.store.base import StoreError, opened
from segue.decode.speculative.store.dense import DenseStore
from segue.decode.speculative.store.trie import trie
from segue.models.lm import LM
from segue.models.run import Run


@dataclass(slots=True)
class Query:
    """The store, and the state (D,) at the last accepted position of a text of so many tokens."""

    store: DenseStore
    state: NDArray[np.float32] | None = None
    length: int = 0


@dataclass(frozen=True)
class Dresd(Speculative):
    """Copies from a datastore by likeness of hidden states: no draft model, one store per model.

    REST looks for equal text and needs no states; this finds what means the same.
    """

    card = Card(
        paper=Paper(id="2502.15572", title="DReSD: Dense Retrieval for Speculative Decoding", year=2025),
        claim=Claim(value=1.19, unit="speed-up", baseline="REST", setting="average of its experiments"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "hidden states", "tree attention", "a dense datastore"),
        departs="faiss instead of ScaNN; nearer hits weigh more (sharpness); sampled mode by delta proposals",
        check="spec",
    )

    index: str | None = None  # folder of a dense store, made by `segue index build --kind dense`
    hits: int = 20  # N: nearest positions that are looked at
    length: int = 10  # L: tokens of a retrieved continuation
    nodes: int = 64  # most tokens of the draft tree
    sharpness: float = 10.0  # a hit of cosine c weighs exp(sharpness * c) in the choice of nodes; 0: all alike
    filter: bool = True  # keep only hits whose first token is the one just produced

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hits", "length", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if not self.sharpness >= 0:
            raise ValueError(f"sharpness={self.sharpness} is not allowed: at least 0 (0 weighs all hits alike)")

    @property
    def needs(self) -> Want:  # type: ignore[override]
        return Want(hidden=() if self.index is None else (-1,))

    def lacks(self, lm: LM) -> str:
        if self.index is None:
            return "no datastore was given"
        try:
            return opened(self.index, DenseStore).lacks(lm)
        except StoreError as error:
            return str(error)

    def start(self, run: Run) -> Query:
        if self.index is None:
            raise ValueError(
                "dresd needs a datastore: make one with `segue index build --kind dense` and give it as index=STORE"
            )
        store = opened(self.index, DenseStore)
        store.check(run.lm)
        return Query(store)

    def propose(self, run: Run, state: Query, budget: Budget) -> DraftTree:
        token = run.ids[-1]
        if state.state is None and run.first is not None and len(run.ids) == run.prompt_length + 1:
            state.state, state.length = _row(run.first.hidden[-1][-1]), len(run.ids)
        length, nodes = min(self.length, budget.depth), min(self.nodes, budget.nodes)
        # After rounds whose states nobody kept (a chooser's plain ones) there is nothing to ask with.
        if state.state is None or state.length != len(run.ids) or length < 1 or nodes < 1:
            return DraftTree.root(token)
        near, places = state.store.nearest(state.state, self.hits)
        if self.filter:
            kept = state.store.tokens[places + 1] == token
            near, places = near[kept], places[kept]
        weights = np.exp(self.sharpness * (near.astype(np.float64) - 1.0))
        return trie(token, state.store.follow(places + 2, length), nodes, "dresd", weights)

    def observe(self, run: Run, state: Query, outcome: Outcome) -> None:
        state.state, state.length = _row(outcome.scores.hidden[-1][outcome.path[-1]]), len(run.ids)

    def price(self, run: Run, tokens: int) -> float:
        return opened(self.index, DenseStore).seconds if self.index is not None and tokens else 0.0


def _row(state: Tensor) -> NDArray[np.float32]:
    row: NDArray[np.float32] = state.float().cpu().numpy()
    return row
