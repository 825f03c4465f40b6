"""What a drafter that attends keeps of a run is what the model says of its text, whoever drafted what was accepted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.auto import Auto
from segue.decode.speculative.base import Budget, Outcome
from segue.decode.speculative.chimera import Chimera
from segue.decode.speculative.heads.base import Attentive, Growth, likeliest
from segue.decode.speculative.jakiro import Jakiro
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.staged import Staged
from segue.laws.base import decode
from segue.laws.same_distribution import divergence
from segue.laws.worlds import World, neighbour, network_world, toy_world
from segue.models.engine import Engine
from segue.models.heads import fitted
from segue.models.heads.context import Context
from segue.models.run import Run

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


@dataclass(frozen=True, kw_only=True)
class Checked(Attentive):
    """Looks, before every draft, at what is kept: states and rows of the text as one forward gives them."""

    forgets: int = 0  # of so many rounds one is not seen
    seen: list[int] = field(default_factory=lambda: [0])
    checked: list[int] = field(default_factory=lambda: [0])

    def catch_up(self, run: Run, state: Context) -> Any:
        yield from super().catch_up(run, state)
        ids = run.ids[:-1]
        want = Want(logits="none", hidden=(-1,))
        (scores,) = run.lm.forward([(run.lm.reading(run.source), DraftTree.chain(ids), want)])
        assert state.length == len(ids)
        fresh = Context(state.network, run.lm)
        fresh.add(scores.hidden[-1], len(ids))
        assert torch.allclose(state.last, fresh.last, atol=1e-4)
        for mine, other in zip(state.rows(run.ids), fresh.rows(run.ids), strict=True):
            assert torch.allclose(mine, other, atol=1e-4)
        self.checked[0] += 1

    def observe(self, run: Run, state: Context, outcome: Outcome) -> None:
        self.seen[0] += 1
        if not self.forgets or self.seen[0] % self.forgets:
            super().observe(run, state, outcome)


@dataclass(frozen=True)
class CheckedChimera(Checked, Chimera):
    pass


@dataclass(frozen=True)
class CheckedJakiro(Checked, Jakiro):
    pass


methods = pytest.mark.parametrize("cls", [CheckedChimera, CheckedJakiro])


def checked(cls: type[Checked], world: World, **fields: Any) -> Checked:
    network = cls.network.fresh(world.lm, inner=16).eval().requires_grad_(False)
    return cls(heads=network, **fields)


@methods
@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("forgets", [0, 1, 2])
def test_rounds_that_were_not_seen_are_read_again(cls: type[Checked], family: str, forgets: int) -> None:
    """In a batch, where every request has a text of its own."""
    world = network_world(family)
    method = checked(cls, world, forgets=forgets)
    answers = decode(world.lm, method, world.prompts[:2], SETTINGS)
    for prompt, answer in zip(world.prompts, answers, strict=False):
        assert answer.tokens == world.oracle.answer(prompt, SETTINGS).tokens
    rounds = sum(answer.stats.target_forwards - answer.stats.prefill_forwards for answer in answers)
    assert method.checked[0] >= rounds - len(answers)  # the last round of each may have no room for a draft
    assert (sum(answer.stats.draft_forwards for answer in answers) > 0) == bool(forgets)


@methods
def test_a_prompt_that_is_read_in_pieces_is_kept_whole(cls: type[Checked], world: World) -> None:
    method, prompt = checked(cls, world), world.prompts[0] * 12
    (answer,) = decode(world.lm, method, [prompt], SETTINGS, engine=Engine(token_budget=8))
    assert answer.stats.prefill_forwards > 1
    assert answer.stats.draft_forwards == 0
    assert method.checked[0] > 0


@methods
def test_what_is_taken_back_is_forgotten(cls: type[Checked], world: World) -> None:
    """As the drafter of a draft model, whose text the target cuts back."""
    draft = neighbour(world.lm)
    inner = cls(heads=cls.network.fresh(draft, inner=16).eval().requires_grad_(False))
    method = Staged(draft=draft, inner=inner, gamma=4)
    settings = Settings(max_tokens=24, ignore_eos=True, temperature=1.0, seed=3)
    (sampled,) = decode(world.lm, method, world.prompts[:1], settings)
    assert sampled.stats.accepted < sampled.stats.drafted
    assert inner.checked[0] > 4
    (answer,) = decode(world.lm, method, world.prompts[:1], SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens


@pytest.mark.parametrize("cls", [Chimera, Jakiro])
def test_beside_other_drafters_samples_follow_the_models_law(cls: type[Attentive]) -> None:
    world = toy_world(3)
    fields: dict[str, Any] = {"widths": "2,2"} if cls is Chimera else {"depth": 2, "width": 2}
    inner = cls(heads=fitted(cls.network.fresh(world.lm, inner=4), world.lm), **fields)
    method = Auto(drafters=(PromptLookup(), inner), budget="fixed")
    assert divergence(method, world.lm, world.prompts[-1], Settings(temperature=1.0, max_tokens=3)) < 1e-9


@methods
def test_among_other_drafters_it_reads_what_it_has_not_seen(cls: type[Checked], world: World) -> None:
    inner = checked(cls, world)
    settings = Settings(max_tokens=80, ignore_eos=True)
    for prompt in world.prompts:
        (answer,) = decode(world.lm, Auto(drafters=(PromptLookup(), inner)), [prompt], settings)
        assert answer.tokens == world.oracle.answer(prompt, settings).tokens
    assert inner.checked[0] > 0


@dataclass(frozen=True, kw_only=True)
class AsDrawn(Attentive):
    """Says of the likeliest tokens that they were drawn from the drafter's probabilities."""

    def propose(self, run: Run, state: Context, budget: Budget) -> Any:
        tree = yield from super().propose(run, state, budget)
        for node in range(1, len(tree)):
            q = tree.q.setdefault(tree.parents[node], torch.zeros(run.lm.vocab_size, dtype=torch.float64))
            q[tree.tokens[node]] = tree.score[node]
            tree.sampled[node] = True
        tree.q = {node: q / q.sum() for node, q in tree.q.items()}
        return tree


@dataclass(frozen=True)
class DrawnChimera(AsDrawn, Chimera):
    pass


@dataclass(frozen=True)
class DrawnJakiro(AsDrawn, Jakiro):
    pass


@pytest.mark.parametrize(
    ("right", "wrong", "fields"),
    [(Chimera, DrawnChimera, {"widths": "2,2"}), (Jakiro, DrawnJakiro, {"depth": 2, "width": 2})],
)
def test_likeliest_tokens_taken_for_drawn_ones_break_the_law(
    right: type[Attentive], wrong: type[Attentive], fields: dict[str, Any]
) -> None:
    world = toy_world(3)
    network = fitted(right.network.fresh(world.lm, inner=4), world.lm)
    settings = Settings(temperature=1.0, max_tokens=3)
    assert divergence(right(heads=network, **fields), world.lm, world.prompts[-1], settings) < 1e-9
    assert divergence(wrong(heads=network, **fields), world.lm, world.prompts[-1], settings) > 0.05


def test_a_tree_grows_by_the_products_of_its_probabilities() -> None:
    growth = Growth(7)
    nodes, places = growth.expand([0], likeliest(torch.tensor([[0.6, 0.3, 0.1]]).log(), 2), 2)
    assert [growth.tokens[node] for node in nodes] == [0, 1]
    assert places == [0, 0]
    # Behind token 0: .6 * .49 and .6 * .41; behind token 1: .3 * .9 and .3 * .06.
    logits = torch.tensor([[0.49, 0.41, 0.1], [0.04, 0.06, 0.9]]).log()
    nodes, places = growth.expand(nodes, likeliest(logits, 2), 3)
    assert [growth.tokens[node] for node in nodes] == [0, 2, 1]
    assert places == [0, 1, 0]
    tree = growth.tree(4, "it")
    assert tree.tokens == [7, 0, 1, 0, 2]
    assert tree.parents == [-1, 0, 0, 1, 2]
    assert tree.score == pytest.approx([1.0, 0.6, 0.3, 0.49, 0.9])
    assert growth.tree(2, "it").tokens == [7, 0, 1]


def test_a_sure_child_does_not_go_without_its_parent() -> None:
    growth, nodes = Growth(0), [0]
    sure = torch.tensor([[200.0, 0.0]])
    for _ in range(3):
        nodes, _ = growth.expand(nodes, likeliest(sure, 1), 1)
    assert growth.tree(2, "it").parents == [-1, 0, 1]
