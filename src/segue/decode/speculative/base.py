"""The one loop of draft and verify: plan, propose, trim, score, accept, commit, observe, emit.

A method of this family is a `Drafter`: it says how trees are proposed. Verification, acceptance, stopping, streaming
and statistics are here, once. Sequential cost is one target forward per round, whatever the drafter does.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from segue.data import DraftTree, Scores, Want
from segue.models.run import Decoder, Forward, Request, Run
from segue.ops.accept import accept, accept_greedy

Proposal = DraftTree | Generator[Request, Scores, DraftTree]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a proposal may cost: nodes besides the root, and depth below it."""

    nodes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """The controller without opinion: always as much as the drafter likes, but never past the end of the output."""

    nodes: int = 512

    def plan(self, run: Run) -> Budget:
        # The round emits one token more than it accepts, so a draft as long as the rest is one too long.
        return Budget(self.nodes, run.remaining - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round did: the tree as verified, its scores, the accepted path and the token after it."""

    tree: DraftTree
    scores: Scores
    path: list[int]
    token: int


class Drafter(Protocol):
    """How one method proposes. `start` makes the state of a run; the object itself never changes."""

    def start(self, run: Run) -> Any:
        """State of this run, before the prompt is read."""

    def propose(self, run: Run, state: Any, budget: Budget) -> Proposal:
        """A tree whose root is run.ids[-1], or a generator that asks for forwards first and returns the tree."""

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        """Learn from a round. Called after its tokens were emitted and committed."""


class Speculative:
    """Base of the family: subclasses are drafters."""

    needs = Want()  # what a drafter wants read back besides the logits
    lenience: float = 1.0  # below 1 sampled drafts are accepted too easily (only draft_model offers it)

    def start(self, run: Run) -> Any:
        raise NotImplementedError

    def propose(self, run: Run, state: Any, budget: Budget) -> Proposal:
        raise NotImplementedError

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        """Most drafters learn nothing from a round."""

    def run(self, run: Run) -> Decoder[None]:
        controller = Fixed()
        state = self.start(run)
        scores = yield from run.prefill(self.needs)
        going = run.emit([run.pick(scores, -1)], scores, [-1])
        while going:
            budget = controller.plan(run)
            proposal = self.propose(run, state, budget)
            tree = proposal if isinstance(proposal, DraftTree) else (yield from proposal)
            tree = tree.truncate(budget.nodes + 1, budget.depth)
            scores = yield Forward(run.sequence, tree, self.needs)
            path, token = self._accept(run, tree, scores)
            run.sequence.commit(path, token)
            run.stats.drafted += len(tree) - 1 - sum(tree.scored_only)
            before = run.stats.tokens
            going = run.emit([*(tree.tokens[node] for node in path[1:]), token], scores, path)
            # What was accepted behind an end of text is not given out.
            run.stats.accepted += min(len(path) - 1, run.stats.tokens - before)
            self.observe(run, state, Outcome(tree, scores, path, token))

    def _accept(self, run: Run, tree: DraftTree, scores: Scores) -> tuple[list[int], int]:
        if run.target.argmax:
            return accept_greedy(tree, scores.argmax())
        prefix = run.ids[:-1]
        return accept(
            tree,
            lambda node: run.target.p(scores.row(node), prefix + [tree.tokens[i] for i in tree.path(node)]),
            run.chance,
            self.lenience,
        )
