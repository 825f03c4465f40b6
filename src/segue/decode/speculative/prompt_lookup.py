"""Prompt lookup: the draft is what followed the same n-gram earlier in the text.

1. Index every n-gram (n = max_ngram .. 1) of the prompt (or source) and the output by where it ended last.
2. Look up the last n tokens, longest n first.
3. Propose, as one chain, the tokens that followed the match.
4. Verify; add the new tokens' n-grams to the index.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Speculative
from segue.models.run import Run


@dataclass(slots=True)
class Index:
    """Where each n-gram ended last, and how many tokens are indexed."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True)
class PromptLookup(Speculative):
    """Copies from the text so far: no model, no training; good where the answer repeats the prompt."""

    card = Card(
        paper=Paper(id="github:apoorvumang/prompt-lookup-decoding", title="Prompt Lookup Decoding", year=2023),
        claim=Claim(value=2.4, unit="speed-up", baseline="greedy", setting="7B, summarisation and QA with context"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits",),
        departs="takes the latest match where the original takes the first, and repeats what followed it when that is "
        "shorter than the draft",
        check="spec",
    )

    max_ngram: int = 3  # longest n-gram looked up
    draft_tokens: int = 10  # tokens proposed after a match

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_ngram", "draft_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def start(self, run: Run) -> Index:
        return Index()

    def propose(self, run: Run, state: Index, budget: Budget) -> DraftTree:
        self._extend(state, run.seen, run.settled)
        for n in range(min(self.max_ngram, len(run.seen) - 1), 0, -1):
            end = state.ends.get(tuple(run.seen[-n:]))
            if end is not None:
                length = min(self.draft_tokens, budget.nodes, budget.depth)
                period = len(run.seen) - end  # a match that reaches to the end goes on as it did since
                guess = [run.seen[end + i % period] for i in range(length)]
                tree = DraftTree.chain([run.seen[-1], *guess], source="prompt_lookup")
                tree.score = [1.0] + [n / (n + 1)] * length  # a longer match is a better one
                return tree
        return DraftTree.root(run.seen[-1])

    def _extend(self, index: Index, ids: list[int], settled: int) -> None:
        """Index every n-gram that something follows; the text's own last n-gram is the query."""
        for end in range(max(index.size, 1), settled):
            for n in range(1, min(self.max_ngram, end) + 1):
                index.ends[tuple(ids[end - n : end])] = end
        index.size = settled
