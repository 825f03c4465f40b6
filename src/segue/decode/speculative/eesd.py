"""Early-exiting speculative decoding: the model's first layers and one trained layer draft, the other layers verify.

1. Draft: a token runs through layers 1 .. N of the model itself; the trained layer on top of them, with rows of its
   own for all tokens before, and the model's head give the next token. Rows of layers 1 .. N are the model's own.
2. Verify: the states behind layer N of all drafted tokens are exact, so the forward that verifies them resumes there
   and runs layers N + 1 .. L only.
3. How many tokens are drafted is chosen by Thompson sampling: the chance that a draft is accepted is drawn from its
   posterior, a Beta distribution of what was accepted so far (budget=thompson).
4. The accepted tokens' rows stay in all layers, and their states behind layer N become rows of the trained layer.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Outcome
from segue.decode.speculative.budget import Costs, Planner, controller
from segue.decode.speculative.heads.base import Attentive
from segue.models.draft import FirstLayers
from segue.models.heads import trained
from segue.models.heads.context import Context
from segue.models.heads.exit import ExitLayer, LeanExit
from segue.models.run import Request, Run


class Exits(Context):
    """What a run keeps: the states behind layer N, and those of the round's draft."""

    drafted: FirstLayers | None = None  # the round's tree


@dataclass(frozen=True)
class EESD(Attentive):
    """Self-speculation that wastes nothing: what was drafted is not computed again where it is verified."""

    card = Card(
        paper=Paper(
            id="2406.03853",
            title="Speculative Decoding via Early-exiting for Faster LLM Inference with Thompson Sampling Control "
            "Mechanism",
            year=2024,
        ),
        claim=Claim(
            value=None, unit="none", baseline="Medusa and self-speculation", setting="faster, LLaMA-2 13B and 70B"
        ),
        exact=(SameTokens(), SameDistribution()),
        trains="heads",
        needs=("logits", "hidden states", "a choice of layers", "trained heads"),
        departs="the Beta posterior of the first controller only; the second one's calibration is not published",
        check="spec",
    )
    network = ExitLayer

    joins: ClassVar[bool] = False  # it drafts with the target's own layers

    budget: str = "thompson"  # what limits a round's draft: thompson, fixed (gamma only), gain, heuristic, ema
    gamma: int = 8  # tokens drafted per round, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 1:
            raise ValueError(f"gamma={self.gamma} is not allowed: at least 1")

    def price(self, run: Run, tokens: int) -> float:
        network = trained(run.lm, self.network, self.heads)
        # The last token is read by the first layers as well.
        share: float = network.shape.exit / run.lm.layers
        return (tokens + 1) * share * run.step_seconds(1) + network.seconds(tokens)

    def planner(self, run: Run, state: Exits) -> Planner:
        rest = 1 - state.network.shape.exit / run.lm.layers
        costs = Costs(
            lambda rows: run.step_seconds(rows) * (rest if rows > 1 else 1.0), lambda tokens: self.price(run, tokens)
        )
        return controller(self.budget)(costs)

    def start(self, run: Run) -> Exits:
        return Exits(trained(run.lm, self.network, self.heads), run.lm)

    def propose(self, run: Run, state: Exits, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        steps = min(self.gamma, budget.depth, budget.nodes, run.lm.context_length - len(run.ids) - 1)
        state.drafted = None
        if steps < 1:
            return DraftTree.root(run.ids[-1])
        yield from self.catch_up(run, state)
        lean: LeanExit = state.lean
        state.rows(run.ids)
        first = FirstLayers(run.sequence, state.network.shape.exit)

        def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
            scores = yield from first.read(ids[-1])
            with torch.inference_mode():
                features = lean.step(state, scores.hidden[first.count], len(ids) - 1)
                return lean.logits(run.lm, features)[0]

        tree = yield from first.chain(run, steps, read, self.name)
        state.drafted = first
        return tree

    def verifying(self, state: Exits, tree: DraftTree) -> Want:
        assert state.drafted is not None
        return state.drafted.rest(len(tree))

    def observe(self, run: Run, state: Exits, outcome: Outcome) -> None:
        drafted, state.drafted = state.drafted, None
        if drafted is None or outcome.scores.hidden:  # a plain round, or somebody else's forward
            super().observe(run, state, outcome)
        else:
            state.add(drafted.states[outcome.path], len(run.sequence))
