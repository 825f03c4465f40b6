"""The family's loop, with drafters made for the test."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

import segue
from segue import catalog
from segue.card import Card, Paper, SameTokens
from segue.data import DraftTree, Scores, Settings, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.decode.speculative.budget import CONTROLLERS, Costs
from segue.laws.base import decode
from segue.laws.worlds import World, toy_world
from segue.models.run import Forward, Prefill, Request, Run
from segue.models.sequence import Sequence

CARD = Card(paper=Paper(id="", title="", year=0), claim=None, exact=(SameTokens(),))


@dataclass(frozen=True)
class Oracle(Speculative):
    """Knows the text and proposes its next `length` tokens, with a wrong sibling at every step."""

    card = CARD
    text: tuple[int, ...] = ()
    length: int = 4
    respect: bool = True  # keeps to the budget by itself
    budgets: list[Budget] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def start(self, run: Run) -> None:
        return None

    def propose(self, run: Run, state: None, budget: Budget) -> DraftTree:
        self.budgets.append(budget)
        at = len(run.output)
        tree = DraftTree.root(run.ids[-1])
        node = 0
        for token in self.text[at : at + min(self.length, budget.depth if self.respect else 99)]:
            tree.add(node, (token + 1) % run.lm.vocab_size)
            node = tree.add(node, token)
        tree.add(0, 0, scored_only=True)
        return tree

    def observe(self, run: Run, state: None, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        # The tokens of the round are out and in the past by now; the last is pending.
        assert run.ids[-1] == outcome.token or run.finish_reason is not None
        assert len(run.sequence) >= len(run.ids) - 1 or run.finish_reason is not None


def text_of(world: World, n: int) -> tuple[int, ...]:
    return tuple(world.oracle.answer([0, 1], Settings(max_tokens=n)).tokens)


@pytest.mark.parametrize("respect", [True, False])
def test_a_round_gives_the_path_and_one_token(respect: bool) -> None:
    world = toy_world(4)
    text = text_of(world, 16)
    method = Oracle(text=text, length=4, respect=respect)
    (answer,) = decode(world.lm, method, [[0, 1]], Settings(max_tokens=16))
    assert answer.tokens == list(text)
    # 1 token from the prompt, then 5 a round: 1 + 5 + 5 + 5.
    assert answer.stats.target_forwards == 1 + 3
    assert [budget.depth for budget in method.budgets] == [14, 9, 4]
    assert [len(outcome.path) for outcome in method.outcomes] == [5, 5, 5]
    assert answer.stats.accepted == 12
    # Neither the root nor what is only scored counts as drafted.
    assert answer.stats.drafted == 24


def test_drafts_are_cut_at_the_end_of_the_output() -> None:
    world = toy_world(4)
    text = text_of(world, 30)
    method = Oracle(text=text, length=20, respect=False)
    (answer,) = decode(world.lm, method, [[0, 1]], Settings(max_tokens=7))
    assert answer.tokens == list(text[:7])
    assert answer.stats.target_forwards == 2
    (outcome,) = method.outcomes
    depths = [d for d, s in zip(outcome.tree.depths, outcome.tree.scored_only, strict=True) if not s]
    assert max(depths) == 5  # six tokens are left, and the round gives one more than it accepts


def test_the_controller_never_allows_more_than_the_rest() -> None:
    for make in CONTROLLERS.values():
        planner = make(Costs(lambda rows: 1.0))
        assert all(planner.plan(room).depth <= room for room in (0, 1, 4))
    assert CONTROLLERS["fixed"](Costs(lambda rows: 1.0)).plan(4) == Budget(512, 4)


@dataclass(frozen=True)
class Asks(Speculative):
    """Scores the arg-max chain with forwards of its own before it proposes: a draft model made of the target."""

    card = CARD

    def start(self, run: Run) -> Sequence:
        sequence = run.lm.sequence()
        sequence.drafts = True
        return sequence

    def propose(self, run: Run, state: Sequence, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        scores = yield Prefill(state, run.ids[len(state) :], Want(logits="last"))
        tree = DraftTree.root(run.ids[-1])
        for step in range(min(3, budget.depth)):
            tree.add(step, scores.argmax()[-1])
            scores = yield Forward(state, DraftTree.root(tree.tokens[-1]), Want(logits="last"))
            state.commit([0])
        state.rollback(state.mark().__class__(len(run.ids), None))
        return tree


def test_a_drafter_may_ask_for_forwards_first(world: World) -> None:
    prompt = world.prompts[1]
    (answer,) = decode(world.lm, Asks(), [prompt], Settings(max_tokens=13))
    assert answer.tokens == world.oracle.answer(prompt, Settings(max_tokens=13)).tokens
    assert answer.stats.target_forwards == 1 + 3
    assert answer.stats.draft_forwards == 3 + 3 + 3 + 3
    assert answer.stats.acceptance == 1


BEYOND = Want(hidden=(0,), attention=((0,), None), layers=(0,)).needs  # all that a forward gives besides logits


@pytest.mark.parametrize("name", ["clasp", "sparse_to_dense", "specextend", "depth_decay", "token_recycling"])
def test_a_drafter_lacks_what_its_card_needs_and_the_model_does_not_give(name: str) -> None:
    lm, fields = toy_world(3).lm, {f.name for f in catalog.find(name).fields}
    method = catalog.build(name, **({"draft": lm} if "draft" in fields else {}))
    assert method.lacks(lm) == ""
    needed = [need for need in method.card.needs if need in BEYOND]
    assert (name == "token_recycling") == (not needed)
    lm.lacking = frozenset(BEYOND)
    reason = method.lacks(lm)
    assert reason.startswith(f"{name} needs {' and '.join(needed)}, which toy does not give" if needed else "")
    assert bool(reason) == bool(needed)


def test_a_choice_leaves_out_who_cannot_draft() -> None:
    chooser, run = segue.method("auto", allow="clasp,prompt_lookup"), Run(toy_world(4).lm, [0, 1], Settings())
    assert set(chooser.start(run).drafters) == {"clasp", "prompt_lookup"}
    run.lm.lacking = frozenset(BEYOND)
    assert set(chooser.start(run).drafters) == {"prompt_lookup"}


def test_a_base_without_a_drafter_is_no_method() -> None:
    run = Run(toy_world(3).lm, [0], Settings())
    with pytest.raises(NotImplementedError):
        Speculative().start(run)
    with pytest.raises(NotImplementedError):
        Speculative().propose(run, None, Budget(1, 1))
