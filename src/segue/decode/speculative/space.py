"""SPACE: a model that was taught to fill in masks drafts for itself, and every forward verifies and drafts at once.

1. The model was fine-tuned to say at every one of k mask tokens which token stands one place behind it
   (semi-autoregressive fine-tuning, section 3.1).
2. A round's tree: the pending token, the candidates c_1 .. c_k in a chain behind it, and behind the pending token and
   each candidate a group of k masks of its own, which sees nothing of the candidates behind it (section 3.2). Groups
   are only read back; they stand at the places where the next candidates would.
3. Candidates are accepted by the model's own rows, as any draft. Greedily c_i is the likeliest token of a mask's row;
   in sampling it is drawn from that row, and a refusal is replaced by a draw from the residual.
4. The group behind the last accepted token gives the next candidates: whatever is accepted, they are there.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import CapabilityError, DraftTree, Scores
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.draft import chain, given
from segue.models.lm import LM
from segue.models.run import Request, Run
from segue.models.tuning import mask_token


@dataclass(slots=True)
class Masks:
    """Of one run: the mask's token, and what the masks behind the last accepted token said."""

    mask: int
    rows: list[Tensor] = field(default_factory=list)  # of each a (V,) row of logits
    groups: list[list[int]] = field(default_factory=list)  # in the round's tree: masks behind each node of the chain
    tree: DraftTree | None = None  # as it was proposed


@dataclass(frozen=True)
class Space(Speculative):
    """No drafter beside the model: pays where its masks guess well, and rows cost little."""

    card = Card(
        paper=Paper(
            id="2402.11809",
            title="Generation Meets Verification: Accelerating Large Language Model Inference with Smart Parallel "
            "Auto-Correct Decoding",
            year=2024,
        ),
        claim=Claim(value=2.7, unit="speed-up", baseline="greedy", setting="2.7 to 4.0, HumanEval-X, 6B to 34B, GPU"),
        exact=(SameTokens(), SameDistribution()),
        trains="the model",
        needs=("logits", "tree attention", "a model tuned by space"),
        departs="sampling replaces refused candidates from the residual, where the released code draws from p itself",
        check="spec",
    )

    free = False

    k: int = 5  # masks in a group, and candidates of a round, at most
    mask: int = -1  # token id of the mask; -1: the one that the model was tuned with

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k={self.k} is not allowed: at least 1")
        if self.mask < -1:
            raise ValueError(f"mask={self.mask} is not allowed: a token id, or -1 for the model's own")

    def lacks(self, lm: LM) -> str:
        known = self.mask >= 0 or lm.tuned.get("kind") == self.name
        return super().lacks(lm) or ("" if known else "the model was not tuned to fill in masks (segue train space)")

    def price(self, run: Run, tokens: int) -> float:
        return run.step_seconds(1 + self.k * (tokens + 1)) - run.step_seconds(1)

    def start(self, run: Run) -> Masks:
        if run.source:
            raise CapabilityError(f"{run.lm.name} is an encoder-decoder, and {self.name} tunes decoders alone")
        return Masks(mask_token(run.lm, self.name, self.mask))

    def propose(self, run: Run, state: Masks, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        steps = min(len(state.rows), self.k, budget.depth, budget.nodes)
        tree = yield from chain(run, steps, given(run, state.rows), self.name)
        state.groups = []
        for node in range(len(tree)):
            group, last = [], node
            for _ in range(self.k):
                last = tree.add(last, state.mask, scored_only=True)
                group.append(last)
            state.groups.append(group)
        state.tree = tree
        return tree

    def observe(self, run: Run, state: Masks, outcome: Outcome) -> None:
        state.rows = []
        if outcome.tree is state.tree:  # neither trimmed nor somebody else's
            state.rows = [outcome.scores.row(node) for node in state.groups[outcome.path[-1]]]
