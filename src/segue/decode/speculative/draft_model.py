"""Speculative decoding with a draft model (Leviathan et al.).

1. The draft model q continues the text by gamma tokens x_1 .. x_gamma, one forward each; its rows q_i are kept.
2. The target scores the last token and all of x in one forward, giving p_1 .. p_{gamma+1}.
3. x_i is accepted iff u * q_i(x_i) < p_i(x_i); the first rejection is replaced by a draw from
   norm(max(0, p_i - q_i)), and after gamma acceptances a token is drawn from p_{gamma+1} (alg. 1).
4. Both pasts are cut to the accepted prefix. After a full acceptance the draft has not read x_gamma yet: it reads two
   tokens in the next round.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from segue.card import Card, Claim, Limit, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, WithDraft
from segue.models.draft import Draft, chain
from segue.models.run import Request, Run


@dataclass(frozen=True)
class DraftModel(WithDraft):
    """A smaller model of the same vocabulary drafts a chain; pays where it is much cheaper and often agrees."""

    card = Card(
        paper=Paper(id="2211.17192", title="Fast Inference from Transformers via Speculative Decoding", year=2022),
        claim=Claim(value=2.6, unit="speed-up", baseline="sampling, T=1", setting="T5-XXL 11B, EnDe, TPU-v4"),
        exact=(SameTokens(), SameDistribution(), Limit(knob="lenience", exact_at=1.0)),
        needs=("logits", "a draft model"),
        departs="lenience acts only when sampling; a larger draft vocabulary is cut to the target's",
        check="spec",
    )

    gamma: int = 5  # tokens drafted per round, at most
    lenience: float = 1.0  # l: below 1 drafted tokens are accepted too easily (lossy)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 1:
            raise ValueError(f"gamma={self.gamma} is not allowed: at least 1")
        if not 0 < self.lenience <= 1:
            raise ValueError(f"lenience={self.lenience} is not allowed: above 0 and at most 1 (1 is exact)")

    def propose(self, run: Run, state: Draft, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        steps = min(self.gamma, budget.depth, budget.nodes, state.room(run))
        return chain(run, steps, state.read, "draft_model")
