"""Multi-candidate speculative decoding: several candidates per position, so that one bad draw does not end a draft.

k = (k_1 .. k_D) candidates per node and level. Per round:
1. The draft model scores a level of the tree in one forward; each of its nodes gets k_d children drawn from its row q,
   without replacement by default.
2. The target scores the whole tree in one forward.
3. A node's children are tried in draw order: t is accepted iff u * q(t) < p(t); else p <- norm(max(0, p - q)) and,
   without replacement, q(t) <- 0, q <- norm(q). If none is accepted the next token is drawn from what is left of p.
4. The naive verification draws one token from p and accepts the child that equals it.
5. Greedy runs take the k_d likeliest tokens instead of draws.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, WithDraft, levels
from segue.models.draft import Draft, draw, likeliest
from segue.models.run import Request, Run


@dataclass(frozen=True)
class MultiCandidate(WithDraft):
    """A tree of draws from a draft model, k_d per node and level: more accepted per round, for more rows."""

    card = Card(
        paper=Paper(id="2401.06706", title="Multi-Candidate Speculative Decoding", year=2024),
        claim=Claim(
            value=None,
            unit="none",
            baseline="speculative decoding",
            setting="higher acceptance rates on several data sets and models",
        ),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "tree attention"),
        check="spec",
    )

    candidates: str = "4,2,2"  # k: children of every node, level by level
    replacement: bool = False  # draw siblings with replacement
    naive: bool = False  # verify by one draw per node instead of the ratio of p and q

    def __post_init__(self) -> None:
        super().__post_init__()
        levels("candidates", self.candidates, "4,2,2")

    def propose(self, run: Run, state: Draft, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        tree = DraftTree.root(run.ids[-1])
        tree.replacement = self.replacement
        level = [0]
        for count in levels("candidates", self.candidates, "4,2,2")[: min(budget.depth, budget.nodes, state.room(run))]:
            rows = yield from state.rows(run.ids, tree)
            grown: list[int] = []
            for node, row in zip(level, rows, strict=True):
                if run.target.greedy:
                    grown += likeliest(run, tree, node, row, count, "multi_candidate")
                else:
                    grown += draw(run, tree, node, row, count, "multi_candidate")
            if self.naive:
                tree.sampled = [False] * len(tree)
            level = grown
            if len(tree) > budget.nodes:
                break
        return tree
