"""REST: the draft is what followed the longest matching end of the text in a datastore, as a tree.

1. Offline: a suffix array over the tokens of a corpus (store/suffix.py; `segue index build`).
2. Per round look up the last n tokens, n = max_suffix .. min_suffix, the longest that occurs first.
3. Put what followed its occurrences into a trie; weigh every prefix by its frequency.
4. Keep the most frequent prefixes as the draft tree, verified in one forward with tree attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Speculative
from segue.decode.speculative.store.base import StoreError, opened
from segue.decode.speculative.store.suffix import SuffixStore
from segue.decode.speculative.store.trie import trie
from segue.models.lm import LM
from segue.models.run import Run


@dataclass(frozen=True)
class Rest(Speculative):
    """Copies from a datastore of texts: no draft model, any tokenizer; good where answers repeat known text."""

    card = Card(
        paper=Paper(id="2311.08252", title="REST: Retrieval-Based Speculative Decoding", year=2023),
        claim=Claim(
            value=2.36,
            unit="speed-up",
            baseline="autoregressive",
            setting="7B and 13B, code and text, batch 1; 1.62 to 2.36",
        ),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "tree attention", "a datastore"),
        departs="sampled mode by delta proposals, since the draws per path of the original are not exact; of many "
        "occurrences an even share is read instead of the first ones",
        check="spec",
    )

    index: str | None = None  # folder of a suffix store, made by `segue index build`
    max_suffix: int = 16  # longest end of the text that is looked up
    min_suffix: int = 2  # shortest one
    length: int = 10  # tokens of a retrieved continuation
    nodes: int = 64  # c: prefixes kept as the draft tree
    hits: int = 512  # occurrences that are read

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_suffix", "min_suffix", "length", "nodes", "hits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if self.min_suffix > self.max_suffix:
            raise ValueError(f"min_suffix={self.min_suffix} is above max_suffix={self.max_suffix}: nothing is between")

    def lacks(self, lm: LM) -> str:
        if self.index is None:
            return "no datastore was given"
        try:
            return opened(self.index, SuffixStore).lacks(lm)
        except StoreError as error:
            return str(error)

    def start(self, run: Run) -> SuffixStore:
        if self.index is None:
            raise ValueError("rest needs a datastore: make one with `segue index build` and give it as index=STORE")
        store = opened(self.index, SuffixStore)
        store.check(run.lm)
        return store

    def propose(self, run: Run, state: SuffixStore, budget: Budget) -> DraftTree:
        length, nodes = min(self.length, budget.depth), min(self.nodes, budget.nodes)
        if length < 1 or nodes < 1:
            return DraftTree.root(run.ids[-1])
        ids = run.ids[-self.max_suffix :]
        rows = state.continuations(ids, self.max_suffix, self.min_suffix, length, self.hits)
        return trie(run.ids[-1], rows, nodes, "rest")

    def price(self, run: Run, tokens: int) -> float:
        return opened(self.index, SuffixStore).seconds if self.index is not None and tokens else 0.0
