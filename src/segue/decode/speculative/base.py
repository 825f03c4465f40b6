"""The one loop of draft and verify: plan, propose, trim, score, accept, commit, emit, learn.

A method of this family is a `Drafter`: it says how trees are proposed. Verification, acceptance, stopping, streaming
and statistics are here, once. Sequential cost is one target forward per round, whatever the drafter does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from segue.card import Card
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.budget import Budget, Costs, Planner, controller
from segue.models.companion import companion
from segue.models.draft import Draft, prefix
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Request, Run
from segue.ops.accept import accept, accept_greedy

__all__ = [
    "Budget",
    "Drafter",
    "Outcome",
    "Proposal",
    "Speculative",
    "WithDraft",
    "held",
    "levels",
    "unread",
    "whole",
]

Drafter = Any  # a Speculative that another method holds in a field; the catalog makes it from a name
Proposal = DraftTree | Generator[Request, Scores, DraftTree]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round did: the tree as verified, its scores, the accepted path and the token after it."""

    tree: DraftTree
    scores: Scores
    path: list[int]
    token: int

    def seen_by(self, want: Want) -> Outcome:
        """What one of several drafters asked for and nothing that only others did: of the likeliest tokens there are as
        many as the one that wants most of them."""
        scores = self.scores
        top = scores.topk[:, : want.topk] if scores.topk is not None and want.topk else None
        hidden = {state: rows for state, rows in scores.hidden.items() if state in want.hidden}
        watched = scores.attention if want.attention else {}
        return replace(self, scores=replace(scores, topk=top, hidden=hidden, attention=watched))


@dataclass(frozen=True, kw_only=True)
class Speculative:
    """Base of the family: subclasses are drafters. The object never changes; `start` makes the state of a run."""

    card: ClassVar[Card]
    needs = Want()  # what a drafter wants read back besides the logits
    free: ClassVar[bool] = True  # proposing takes no forward and no rows of its own
    joins: ClassVar[bool] = False  # proposing takes time, but no forward of the target: it may go on beside free ones
    lenience = 1.0  # below 1 sampled drafts are accepted too easily (only draft_model offers it)

    budget: str = "fixed"  # what limits a round's draft: fixed (its own fields only), gain, heuristic, ema, thompson

    def __post_init__(self) -> None:
        controller(self.budget)

    @property
    def name(self) -> str:
        """As the catalog calls it: by its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def only_proposes(self) -> bool:
        """Whether what is accepted follows the model's own distribution: others may then hold this drafter."""
        return type(self).decide is Speculative.decide

    def lacks(self, lm: LM) -> str:
        """What a choice among methods must know: why this one cannot draft for `lm`, or nothing."""
        return lm.refusal(self.name, self.card.needs)

    def start(self, run: Run) -> Any:
        """State of this run, before the prompt is read."""
        raise NotImplementedError

    def propose(self, run: Run, state: Any, budget: Budget) -> Proposal:
        """A tree whose root is run.ids[-1], or a generator that asks for forwards first and returns the tree."""
        raise NotImplementedError

    def read(self, run: Run, state: Any, scores: Scores) -> None:
        """The prompt was read: look at what `needs` asked of it. `scores` are those of its last chunk."""

    def reading(self, state: Any) -> Want:
        """What the prompt's forward must compute besides the logits."""
        return self.needs

    def wanted(self, state: Any) -> Want:
        """What this round's forward must compute besides the logits."""
        return self.needs

    def verifying(self, state: Any, tree: DraftTree) -> Want:
        """How the forward that verifies the round's tree is run, where a drafter has done part of it already."""
        return self.wanted(state)

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        """Learn from a round, whoever proposed its tree. Called after its tokens were emitted and committed."""

    def rewind(self, run: Run, state: Any) -> None:
        """The text was cut back to what `run.sequence` holds: only where this drafts for a draft model (staged)."""

    def price(self, run: Run, tokens: int) -> float:
        """Seconds that drafting so many tokens takes besides their own verification."""
        return 0.0

    def pricing(self, run: Run, state: Any) -> Callable[[int], float]:
        """The price of drafts by their tokens, for a planner that asks often."""
        return lambda tokens: self.price(run, tokens)

    def planner(self, run: Run, state: Any) -> Planner:
        """The controller at work on this run."""
        costs = Costs(run.step_seconds, self.pricing(run, state), lambda: run.lm.cost.overhead)
        return controller(self.budget)(costs)

    def run(self, run: Run) -> Decoder[None]:
        yield from self.rounds(run, self.start(run))

    def rounds(self, run: Run, state: Any) -> Decoder[None]:
        """The loop, for a run whose state is made."""
        scores = yield from run.prefill(self.reading(state))
        self.read(run, state, scores)
        planner = self.planner(run, state)
        last = Scores(scores.packed, scores.start + len(scores.nodes) - 1, [0])
        _, token = yield from self.decide(run, state, DraftTree.root(run.ids[-1]), last)
        going = run.emit([token], last, [0])
        while going:
            # The round emits one token more than it accepts, so a draft as long as the rest is one too long.
            budget = planner.plan(run.remaining - 1)
            proposal = yield from self._propose(run, state, budget)
            if len(proposal) == 1:
                going, token = yield from self._plain_round(run, state, proposal)
                planner.learn(proposal, [token])
                continue
            tree = planner.trim(proposal.truncate(budget.most + 1, budget.deepest)).narrow(run.lm.most_leaves)
            scores = yield Forward(run.sequence, tree, self.verifying(state, tree))
            path, token = yield from self.decide(run, state, tree, scores)
            run.sequence.commit(path, token)
            run.stats.drafted += len(tree) - 1 - sum(tree.scored_only)
            before = run.stats.tokens
            tokens = [*(tree.tokens[node] for node in path[1:]), token]
            going = run.emit(tokens, scores, path)
            # What was accepted behind an end of text is not given out.
            kept = min(len(path) - 1, run.stats.tokens - before)
            run.stats.accepted += kept
            run.stats.book_round(max(d for d, s in zip(tree.depths, tree.scored_only, strict=True) if not s), kept)
            planner.learn(proposal, tokens)
            self.observe(run, state, Outcome(tree, scores, path, token))

    def _plain_round(self, run: Run, state: Any, root: DraftTree) -> Generator[Request, Scores, tuple[bool, int]]:
        """A round without a proposal costs what plain decoding costs. Whether the run goes on, and the token."""
        scores = yield Forward(run.sequence, root, self.wanted(state))
        _, token = yield from self.decide(run, state, root, scores)
        run.sequence.commit([0], token)
        going = run.emit([token], scores, [0])
        run.stats.rounds += 1
        self.observe(run, state, Outcome(root, scores, [0], token))
        return going, token

    def _propose(self, run: Run, state: Any, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        """The proposal, its own code timed; the engine books the forwards that it asks for."""
        begin = time.perf_counter()
        proposal = self.propose(run, state, budget)
        if not isinstance(proposal, DraftTree):
            try:
                request = next(proposal)
                while True:
                    run.stats.drafting_seconds += time.perf_counter() - begin
                    scores = yield request
                    begin = time.perf_counter()
                    request = proposal.send(scores)
            except StopIteration as end:
                proposal = end.value
                assert isinstance(proposal, DraftTree)
        run.stats.drafting_seconds += time.perf_counter() - begin
        return proposal

    def decide(
        self, run: Run, state: Any, tree: DraftTree, scores: Scores
    ) -> Generator[Request, Scores, tuple[list[int], int]]:
        """The accepted path of a scored tree (a bare root in a plain round) and the token behind it. A method that
        follows another distribution than the model's may ask for forwards here."""
        yield from ()  # the model's own distribution needs no further forward
        if run.target.argmax:
            return accept_greedy(tree, scores.argmax())
        path, token = accept(
            tree, lambda node: run.target.p(scores.row(node), prefix(run, tree, node)), run.chance, self.lenience
        )
        assert token is not None
        return path, token


@dataclass(frozen=True, kw_only=True)
class WithDraft(Speculative):
    """Base of drafters that have a draft model of the target's vocabulary read along."""

    free: ClassVar[bool] = False

    draft: str | LM | None = None  # path, hub id or loaded model; none: the embedded draft of the embedded model

    def lacks(self, lm: LM) -> str:
        return super().lacks(lm) if self.draft is not None else "no draft model was given"

    def price(self, run: Run, tokens: int) -> float:
        return tokens * companion(run.lm, self.draft).cost.step(run.sharing) / run.sharing

    def start(self, run: Run) -> Any:
        return Draft(companion(run.lm, self.draft).reading(run.source), run.lm.vocab_size)

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        state.settle(run.sequence, [outcome.tree.tokens[node] for node in outcome.path])

    def rewind(self, run: Run, state: Any) -> None:
        state.settle(run.sequence, [])


def whole(proposal: Proposal) -> Generator[Request, Scores, DraftTree]:
    """A proposal's tree, whatever forwards it asks for first."""
    if isinstance(proposal, DraftTree):
        return proposal
    return (yield from proposal)


def levels(field: str, text: str, like: str) -> tuple[int, ...]:
    """Numbers of children level by level, from a field like "4,2,2"; ValueError where it is none."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{field}={text!r} is not allowed: numbers of at least 1, like {like}")
    return numbers


def unread(holder: Speculative, drafters: Sequence[Drafter]) -> str:
    """Which store a method was given to hand on that none of the drafters it holds reads, or nothing."""
    for field in ("index", "table"):
        value = getattr(holder, field)
        if value is not None and all(getattr(drafter, field, None) != value for drafter in drafters):
            return f"{field}={value!r} is given, and no drafter here reads one: name one that does"
    return ""


def held(method: str, field: str, drafter: Drafter) -> Speculative:
    """The drafter that a method holds in a field; ValueError where it is still a name, or where it is more than a
    drafter: who holds it decides what is accepted, by the model's own distribution."""
    if not isinstance(drafter, Speculative):
        raise ValueError(
            f"{field}={drafter!r} is no drafter: make {method} with segue.method({method!r}, {field}=...), which takes "
            "a name, or give a method object"
        )
    if not drafter.only_proposes:
        raise ValueError(
            f"{field}: {type(drafter).__name__} follows another distribution than the model's, which {method} would "
            "not: give a drafter that only proposes"
        )
    return drafter
