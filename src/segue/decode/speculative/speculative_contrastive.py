"""Speculative contrastive decoding: the amateur that contrastive decoding needs anyway drafts for it.

The target is not the expert's distribution but the contrastive one:
1. The amateur P_a drafts gamma tokens; the expert scores all of them.
2. After each, V' = {w: P_e(w) >= alpha * max P_e}. Inside V' s(w) = (1 + beta) * logit_e(w) - beta * logit_a(w)
   (improved form) or log P_e(w) - log P_a(w) (original form), outside nothing.
3. P_n = softmax(s / temperature), with the run's other settings acting on s as they would on logits.
4. A drafted token is accepted iff u * P_a < P_n, else a token is drawn from norm(max(0, P_n - P_a)).
5. After gamma acceptances the token behind needs P_a there: one more step of the amateur, only then.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, WithDraft
from segue.models.companion import companion
from segue.models.draft import Draft, chain, prefix
from segue.models.run import Request, Run
from segue.ops.accept import accept

FORMS = ("improved", "original")


@dataclass(frozen=True)
class SpeculativeContrastive(WithDraft):
    """Contrastive decoding at the price of speculative decoding: another text than the expert's, by intention."""

    card = Card(
        paper=Paper(id="2311.08981", title="Speculative Contrastive Decoding", year=2023),
        claim=Claim(
            value=None,
            unit="none",
            baseline="speculative decoding",
            setting="similarly fast on four benchmarks, with the quality of contrastive decoding",
        ),
        exact=(SameTarget(target="contrastive"),),
        needs=("logits", "a draft model"),
        check="spec",
    )

    alpha: float = 0.1  # plausibility: tokens below this share of the expert's best are out; 0 keeps all
    beta: float = 0.5  # how much the amateur is subtracted (improved form); 0 is the expert alone
    form: str = "improved"  # improved or original
    gamma: int = 5  # tokens drafted per round, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not allowed: from 0 (no token is out) to 1")
        if not 0 <= self.beta <= 100:
            raise ValueError(f"beta={self.beta} is not allowed: from 0 (the expert alone) to 100")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is not allowed: {' or '.join(FORMS)}")
        if self.gamma < 1:
            raise ValueError(f"gamma={self.gamma} is not allowed: at least 1")

    def start(self, run: Run) -> Draft:
        amateur = companion(run.lm, self.draft)
        # Every token but the last must be read by the amateur: without its row there is no target.
        needed = run.prompt_length + run.max_tokens - 1
        if needed > amateur.context_length:
            raise ValueError(
                f"the answer may need {needed} tokens of context, and the amateur {amateur.name} has "
                f"{amateur.context_length}: lower max_tokens, shorten the prompt or take another draft"
            )
        state: Draft = super().start(run)
        return state

    def propose(self, run: Run, state: Draft, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        steps = min(self.gamma, budget.depth, budget.nodes, state.room(run))
        return chain(run, steps, state.read, "speculative_contrastive")

    def decide(
        self, run: Run, state: Draft, tree: DraftTree, scores: Scores
    ) -> Generator[Request, Scores, tuple[list[int], int]]:
        def p_after(node: int) -> Tensor | None:
            amateur = tree.rows.get(node)
            if amateur is None:
                return None
            text = prefix(run, tree, node)
            return run.target.p(self.contrast(allowed(run, scores.row(node), text), amateur), text)

        path, token = accept(tree, p_after, run.chance)
        if token is None:
            node = path[-1]
            text = prefix(run, tree, node)
            amateur = yield from state.read(text)
            row = allowed(run, scores.row(node), text)
            token = run.chance.index(run.target.p(self.contrast(row, amateur), text))
        return path, token

    def contrast(self, expert: Tensor, amateur: Tensor) -> Tensor:
        """The contrastive scores (V,) of two rows of logits."""
        # Tokens that the amateur does not have (a vocabulary padded less) have no contrast, and are no text either.
        unknown = torch.isneginf(amateur)
        expert, amateur = expert.float(), amateur.float().masked_fill(unknown, 0.0)
        log_e = expert.log_softmax(-1)
        if self.form == "improved":
            scores = (1 + self.beta) * expert - self.beta * amateur
        else:
            scores = log_e - amateur.masked_fill(unknown, float("-inf")).log_softmax(-1)
        if self.alpha:
            scores = scores.masked_fill(log_e < log_e.max() + math.log(self.alpha), float("-inf"))
        return scores.masked_fill(unknown, float("-inf"))


def allowed(run: Run, expert: Tensor, text: list[int]) -> Tensor:
    """The expert's row (V,) after a text without what a constraint forbids there: the best that plausibility is
    measured by must be one that may be written."""
    if run.constraint is None:
        return expert
    mask = run.constraint.mask(tuple(text[run.prompt_length :])).to(expert.device)
    return expert.masked_fill(~mask, float("-inf")) if bool(mask.any()) else expert
