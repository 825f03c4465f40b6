"""RASD: the tree of a draft model and what retrieval found, fused into one tree for one verification.

1. The model drafter grows T_d; the rows of the draft model that it computed come with it.
2. The retrieval drafter proposes the continuations T_r of the current suffix.
3. Prune T_r by the draft's probabilities where they are known, at the root and where T_r runs along T_d: a branch whose
   next token is not among the draft's `top_k` goes; of the rest the likeliest `retrieved` nodes stay.
4. Fuse by longest prefix: a path of T_r follows T_d while the tokens match and hangs the rest where they part.
5. Verify the union. When sampling, the model's draws are tried first, in their order, then what was retrieved.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Drafter, Outcome, Speculative, held, unread, whole
from segue.models.lm import LM
from segue.models.run import Request, Run


@dataclass(frozen=True)
class Rasd(Speculative):
    """Two drafters in one tree: a draft model for what is new, retrieval for what was there before."""

    card = Card(
        paper=Paper(id="2503.03434", title="RASD: Retrieval-Augmented Speculative Decoding", year=2025),
        claim=Claim(
            value=None,
            unit="none",
            baseline="earlier methods",
            setting="fastest on DocQA, summaries, code and in-domain QA",
        ),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "tree attention"),
        departs="any two drafters; the draft model's own drafter stands where the paper has EAGLE-2",
        check="spec",
    )

    free = False

    model: Drafter = "draft_model"  # a drafter with a draft model, by name or as an object
    retrieval: Drafter = "prompt_lookup"  # a drafter whose proposals are not drawn
    draft: str | LM | None = None  # draft model, for drafters that need one
    index: str | None = None  # datastore, for a drafter that needs one
    table: str | None = None  # table of trigrams, for a drafter that reads one
    top_k: int = 32  # a retrieved token must be among so many of the draft's likeliest
    retrieved: int = 32  # nodes that stay of what was retrieved, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "retrieved"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def drafters(self) -> tuple[Speculative, Speculative]:
        return held("rasd", "model", self.model), held("rasd", "retrieval", self.retrieval)

    @property
    def needs(self) -> Want:  # type: ignore[override]
        return Want.join(d.needs for d in self.drafters())

    def wanted(self, state: Any) -> Want:
        return Want.join(d.wanted(s) for d, s in zip(self.drafters(), state, strict=True))

    def lacks(self, lm: LM) -> str:
        model, retrieval = self.drafters()
        return unread(self, self.drafters()) or model.lacks(lm) or retrieval.lacks(lm)

    def price(self, run: Run, tokens: int) -> float:
        return sum(d.price(run, tokens) for d in self.drafters())

    def start(self, run: Run) -> tuple[Any, Any]:
        model, retrieval = self.drafters()
        if reason := unread(self, (model, retrieval)):
            raise ValueError(reason)
        return model.start(run), retrieval.start(run)

    def propose(self, run: Run, state: tuple[Any, Any], budget: Budget) -> Generator[Request, Scores, DraftTree]:
        model, retrieval = self.drafters()
        tree = yield from whole(model.propose(run, state[0], within(budget, model)))
        found = yield from whole(retrieval.propose(run, state[1], within(budget, retrieval)))
        tree.merge(prune(found, tree, self.top_k).truncate(self.retrieved + 1))
        return tree

    def observe(self, run: Run, state: tuple[Any, Any], outcome: Outcome) -> None:
        for drafter, own in zip(self.drafters(), state, strict=True):
            drafter.observe(run, own, outcome.seen_by(drafter.wanted(own)))

    def rewind(self, run: Run, state: tuple[Any, Any]) -> None:
        for drafter, own in zip(self.drafters(), state, strict=True):
            drafter.rewind(run, own)


def within(budget: Budget, drafter: Speculative) -> Budget:
    """What one of the two may propose: a planned depth bounds the one that pays for every token."""
    return replace(budget, depth=budget.deepest) if drafter.free else budget


def prune(found: DraftTree, tree: DraftTree, top_k: int) -> DraftTree:
    """Retrieved continuations without the branches that the draft model does not expect, as far as it was asked."""
    likely = {node: set(row.topk(min(top_k, row.shape[-1])).indices.tolist()) for node, row in tree.rows.items()}
    children = tree.edges()
    along: dict[int, int | None] = {0: 0}  # retrieved node -> the model's node of the same path
    for node in range(1, len(found)):
        parent, token = found.parents[node], found.tokens[node]
        if parent not in along:
            continue
        beside = along[parent]
        if beside is not None and beside in likely and token not in likely[beside]:
            continue
        along[node] = None if beside is None else children.get((beside, token))
    return found if len(along) == len(found) else found.keep(set(along))
