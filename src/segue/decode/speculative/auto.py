"""Choose the drafter while decoding: the default method, and never slower than plain decoding.

1. All free drafters (no forward of their own) propose; their trees are merged, what they agree on becomes one node.
   A trained drafter that is allowed goes on beside them, as deep as it adds to what they promise for the time that it
   takes (measured when it is loaded): often not at all.
2. Every node's chance is learned from what came (budget/calibration.py): in this request, in requests of its kind
   (code, prose, conversation; short or long; greedy or sampled), and in all of them. No exploration is needed: a
   proposal can be judged by the text whether it was verified or not.
3. The tree is cut to what pays by the measured cost of a forward (budget/expected_gain.py); nothing left is plain.
4. Drafters that cost forwards or rows (lookahead, a draft model) are arms of a bandit beside the free ones
   (budget/bandit.py) and are tried in bursts while what can be hoped of them exceeds what the others give.
5. The clock has the last word (budget/guard.py): below 0.97 of the measured rate of plain rounds, drafting rests.

All decisions but the last come from counts and the remembered cost curve, so a rerun decides the same.
Sources: the sum of survivals per cost as in DySpec (arXiv:2410.11744); the guard and the bandit are this house's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segue.card import Card, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Outcome, Proposal, Speculative, unread, whole
from segue.decode.speculative.budget.bandit import Bandit
from segue.decode.speculative.budget.base import Budget, Costs, Planner
from segue.decode.speculative.budget.calibration import Calibration
from segue.decode.speculative.budget.expected_gain import ExpectedGain
from segue.decode.speculative.budget.guard import FLOOR, Guard
from segue.models.lm import LM
from segue.models.run import Decoder, Run

Methods = tuple[Speculative, ...]
Names = tuple[str, ...]

FREE, PLAIN = "free drafters", "plain"
DEEPEST = 8  # tokens of a trained drafter's draft, at most
BURST = 8  # rounds that a costly drafter is given once chosen
HOPE = 2.5  # tokens a round that are expected of a drafter before it was tried
IDLEST = 16  # rounds without a proposal at most, where nothing that was proposed was worth verifying
LONG = 1024  # prompt tokens of a long request
CODE = frozenset("{}();=<>_[]#")
CODE_SHARE = 0.06  # of the characters


@dataclass(frozen=True)
class Auto(Speculative):
    """Switches between drafters and plain decoding from round to round, by what pays on this text and machine."""

    card = Card(
        paper=Paper(id="", title="Choosing the drafter online", year=2026),
        claim=None,
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "tree attention"),
        check="spec",
    )

    allow: Names = ("prompt_lookup", "token_recycling", "lookahead", "draft_model")  # to choose from; empty: all
    deny: Names = ()  # drafters left out
    draft: str | LM | None = None  # draft model, for the drafters that need one
    index: str | None = None  # datastore, for the one that needs it: allow=prompt_lookup,rest
    table: str | None = None  # table of trigrams: allow=prompt_lookup,aded
    drafters: Methods = ()  # the drafters themselves, by name or as objects; made from allow and deny where empty

    budget: str = "gain"  # how the free drafters' tree is cut: gain, fixed, heuristic, ema, thompson

    @property
    def needs(self) -> Want:  # type: ignore[override]
        return Want.join(drafter.needs for drafter in self.drafters)

    def _check(self, lm: LM) -> None:
        """A store that was given and is of no use to anybody here is an error, and no reason to do without."""
        if reason := unread(self, self.drafters):
            raise ValueError(reason)
        for store in ("index", "table"):
            value = getattr(self, store)
            reasons = [d.lacks(lm) for d in self.drafters if value is not None and getattr(d, store, None) == value]
            if reasons and all(reasons):
                raise ValueError(reasons[0])

    def start(self, run: Run) -> Choice:
        self._check(run.lm)
        # What was read for another request has no states for a trained drafter.
        shared = run.prefixes is not None
        able = {d.name: d for d in self.drafters if not d.lacks(run.lm) and not (d.joins and shared)}
        kind = kind_of(run)
        memory: Memory = run.lm.stores.setdefault(f"auto:{','.join(able)}", Memory())
        known = memory.kinds.setdefault(kind, Calibration(memory.overall))
        levels = memory.levels.setdefault(kind, Calibration())
        joining = {name: d for name, d in able.items() if d.joins}
        costly = {name: d for name, d in able.items() if not d.free and not d.joins}
        step = run.step_seconds
        # Nothing but hope is known of a costly drafter before it was tried, except what it costs.
        priors = {name: (HOPE, d.price(run, 4) + step(5)) for name, d in costly.items()}
        priors[FREE] = (HOPE, step(8)) if len(able) > len(costly) else (1.0, step(1))
        key = f"{kind} {','.join(priors)}"
        bandit = memory.bandits.setdefault(key, Bandit(dict(sorted(priors.items(), key=lambda p: p[0] != FREE))))
        states = {name: d.start(run) for name, d in able.items()}
        guard = memory.guards.setdefault(kind, Guard())
        costs = Costs(step, overhead=lambda: run.lm.cost.overhead)
        return Choice(
            able,
            states,
            ExpectedGain(costs, Calibration(known), Calibration(levels))
            if self.budget == "gain"
            else super().planner(run, None),
            {name: d.planner(run, states[name]) for name, d in costly.items()},
            bandit,
            guard,
            guard.pauses,
            memory,
            kind,
            idle=memory.pauses.get(kind, 0),
            joining={name: [d.price(run, depth) for depth in range(DEEPEST + 2)] for name, d in joining.items()},
        )

    def planner(self, run: Run, state: Choice) -> Planner:
        return state.planner

    def propose(self, run: Run, state: Choice, budget: Budget) -> Proposal:
        state.began = time.perf_counter()
        state.price, state.proposed, state.asked = 0.0, False, []
        root = DraftTree.root(run.ids[-1])
        if state.idle and not state.burst:
            state.idle -= 1
            state.arm = PLAIN
            return root
        if state.guard.plain_round(state.gain):
            state.arm, state.burst = PLAIN, 0
            return root
        if state.burst == 0:
            state.arm = state.bandit.choose()
            state.burst = BURST if state.arm != FREE else 1
        state.burst -= 1
        state.proposed = True
        if state.arm != FREE:
            drafter = state.drafters[state.arm]
            own = state.planners[state.arm].plan(budget.depth)
            state.price = drafter.price(run, own.depth) if own.depth else 0.0
            return drafter.propose(run, state.states[state.arm], own)
        for name, drafter in state.drafters.items():
            if drafter.free:
                tree = drafter.propose(run, state.states[name], budget)
                assert isinstance(tree, DraftTree)
                if len(root) == 1:
                    root = tree
                else:
                    root.merge(tree)
        return self._joined(run, state, root, budget) if state.joining else root

    def _joined(self, run: Run, state: Choice, tree: DraftTree, budget: Budget) -> Decoder[DraftTree]:
        """A tree that is there at no cost, and what trained drafters add where that pays."""
        for name in state.joining:
            drafter = state.drafters[name]
            price = state.joining[name].__getitem__
            own: Budget | None = Budget(budget.nodes, min(budget.depth, DEEPEST))
            if isinstance(state.planner, ExpectedGain):
                own = state.planner.beside(tree, name, price, min(budget.depth, DEEPEST))
            if own is not None and own.depth:
                state.price += price(own.depth)
                state.asked.append(name)
                more = yield from whole(drafter.propose(run, state.states[name], own))
                more.merge(tree)
                tree = more
        return tree

    def read(self, run: Run, state: Choice, scores: Scores) -> None:
        for name, drafter in state.drafters.items():
            drafter.read(run, state.states[name], scores)

    def reading(self, state: Choice) -> Want:
        return Want.join(drafter.reading(state.states[name]) for name, drafter in state.drafters.items())

    def wanted(self, state: Choice) -> Want:
        # A round in which nobody is asked is plain decoding, down to what its forward computes, but for the states that
        # a trained drafter would else have to read again.
        if not state.proposed:
            return Want.join(self._watched(state))
        return Want.join(drafter.wanted(state.states[name]) for name, drafter in state.drafters.items())

    def _watched(self, state: Choice) -> list[Want]:
        """What trained drafters want of a round in which they are not asked."""
        return [state.drafters[name].wanted(state.states[name]) for name in state.joining if not state.guard.resting]

    def observe(self, run: Run, state: Choice, outcome: Outcome) -> None:
        tree, tokens = outcome.tree, len(outcome.path)
        drafted = len(tree) > 1
        if drafted:
            state.memory.pauses[state.kind] = 0
        elif state.proposed:  # proposing costs as well: where it leads to nothing it is done ever more rarely
            state.idle = min(2 * state.memory.pauses.get(state.kind, 0) + 1, IDLEST)
            state.memory.pauses[state.kind] = state.idle
        _count(run, tree if drafted else None)
        if state.proposed:
            self._learn(run, state, outcome, drafted)
        else:
            for name in state.joining:
                state.drafters[name].observe(run, state.states[name], outcome)
        if run.sharing == 1:  # the clock of a shared forward says nothing about one of its runs
            state.guard.saw(plain=not drafted, tokens=tokens, seconds=time.perf_counter() - state.began)
        if run.finish_reason is not None:
            run.stats.note = explain(run.stats.methods, state.guard, state.guard.pauses - state.pauses)

    def rewind(self, run: Run, state: Choice) -> None:
        for name, drafter in state.drafters.items():
            drafter.rewind(run, state.states[name])

    def _learn(self, run: Run, state: Choice, outcome: Outcome, drafted: bool) -> None:
        """What a round in which drafters were asked says about them and about the arm that it was."""
        tree, tokens = outcome.tree, len(outcome.path)
        for name, drafter in state.drafters.items():
            own = state.states[name]
            drafter.observe(run, own, outcome.seen_by(drafter.wanted(own)))
        if isinstance(state.planner, ExpectedGain):
            for name in state.asked:
                state.planner.learn_levels(tree, _tokens(outcome), name)
        if state.arm in state.planners:
            state.planners[state.arm].learn(tree, _tokens(outcome))
        predicted = state.price + run.step_seconds(len(tree)) + (run.lm.cost.overhead if drafted else 0.0)
        state.bandit.learn(state.arm, tokens, predicted)
        state.gain += 0.1 * (tokens / predicted * run.step_seconds(1) - state.gain)


@dataclass(slots=True)
class Memory:
    """What outlives a request, by kind: beliefs about drafters and the bandit's sums."""

    overall: Calibration = field(default_factory=Calibration)
    kinds: dict[str, Calibration] = field(default_factory=dict)
    levels: dict[str, Calibration] = field(default_factory=dict)  # of trained drafters, depth by depth
    bandits: dict[str, Bandit] = field(default_factory=dict)
    guards: dict[str, Guard] = field(default_factory=dict)
    pauses: dict[str, int] = field(default_factory=dict)  # rounds without a proposal that were given last


@dataclass(slots=True)
class Choice:
    """State of one run."""

    drafters: dict[str, Speculative]
    states: dict[str, Any]
    planner: Planner
    planners: dict[str, Planner]  # of the costly drafters
    bandit: Bandit
    guard: Guard
    pauses: int  # of the guard, before this request
    memory: Memory
    kind: str
    arm: str = PLAIN
    burst: int = 0  # rounds that the arm still has
    began: float = 0.0
    price: float = 0.0  # predicted seconds of this round's drafting
    proposed: bool = False  # whether this round's drafters were asked
    idle: int = 0  # rounds in which they will not be
    joining: dict[str, list[float]] = field(default_factory=dict)  # trained drafters: seconds of a draft by its depth
    asked: list[str] = field(default_factory=list)  # of them in this round
    gain: float = 1.0  # smoothed predicted speed over plain


def kind_of(run: Run) -> str:
    """What sort of request this is, from the end of its prompt: requests of one kind share what was learned."""
    text = run.lm.decode(run.seen[-200:])
    share = sum(c in CODE for c in text) / max(len(text), 1)
    form = "code" if share > CODE_SHARE else "conversation" if "\n" in text else "prose"
    length = "long" if len(run.seen) >= LONG else "short"
    return f"{form}, {length}, {'greedy' if run.target.argmax else 'sampled'}"


def explain(methods: dict[str, int], guard: Guard, pauses: int) -> str:
    """The choices of a request in words: shares of its rounds, and what the guard did meanwhile."""
    rounds = sum(methods.values())
    ranked = sorted(methods.items(), key=lambda m: -m[1])
    text = ", ".join(f"{name} {count / rounds:.0%}" for name, count in ranked) + " of the rounds"
    if pauses or guard.resting:
        text += f"; drafting fell below {FLOOR} of plain decoding (last {guard.ratio:.2f}) and rested"
    return text


def _count(run: Run, tree: DraftTree | None) -> None:
    """Book the round on those who drafted its tree."""
    names = set()
    for source in tree.source[1:] if tree else ():
        names.update(source.split("+"))
    label = "+".join(sorted(names - {""})) or PLAIN  # nodes of a lookahead window have no source
    run.stats.methods[label] = run.stats.methods.get(label, 0) + 1


def _tokens(outcome: Outcome) -> Sequence[int]:
    return [*(outcome.tree.tokens[node] for node in outcome.path[1:]), outcome.token]
