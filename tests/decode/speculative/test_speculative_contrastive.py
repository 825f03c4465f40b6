from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch

from segue.data import Scores, Settings
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.speculative_contrastive import SpeculativeContrastive
from segue.laws.base import LawBroken, decode
from segue.laws.same_target import same_target
from segue.laws.worlds import FAMILIES, neighbour, network_world, toy_world
from segue.models.run import Request
from segue.ops.accept import accept
from segue.ops.automaton import Trie

(PROMISE,) = SpeculativeContrastive.card.exact


@pytest.mark.parametrize("form", ["improved", "original"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_brute_force(family: str, form: str) -> None:
    world = network_world(family)
    method = SpeculativeContrastive(draft=neighbour(world.lm), form=form, alpha=0.2, beta=0.7, gamma=3)
    assert same_target(PROMISE, method, world)["tokens"] == 2 * 16 * len(world.prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["improved", "original"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_samples_follow_the_contrastive_law(form: str, alpha: float) -> None:
    world = toy_world(3)
    method = SpeculativeContrastive(draft=neighbour(world.lm), form=form, alpha=alpha, beta=1.0, gamma=2)
    assert same_target(PROMISE, method, world)["total variation"] < 1e-6  # type: ignore[arg-type]


class ExpertsBonus(SpeculativeContrastive):
    """The token behind a whole draft comes from the expert alone."""

    def decide(self, run: Any, state: Any, tree: Any, scores: Any) -> Generator[Request, Scores, tuple[list[int], int]]:
        path, token = yield from super().decide(run, state, tree, scores)
        if len(path) == len(tree):
            token = run.chance.index(run.target.p(scores.row(path[-1]), run.ids))
        return path, token


class ExpertsRule(SpeculativeContrastive):
    """Drafts are verified against the expert."""

    def decide(self, run: Any, state: Any, tree: Any, scores: Any) -> Generator[Request, Scores, tuple[list[int], int]]:
        yield from ()
        path, token = accept(tree, lambda node: run.target.p(scores.row(node), run.ids), run.chance)
        assert token is not None
        return path, token


@pytest.mark.parametrize("wrong", [ExpertsBonus, ExpertsRule])
def test_a_wrong_rule_is_found_out(wrong: type) -> None:
    toy, net = toy_world(3), network_world("llama")
    with pytest.raises(LawBroken, match="from its target's in total variation"):
        same_target(PROMISE, wrong(draft=neighbour(toy.lm), gamma=2), toy)  # type: ignore[arg-type]
    with pytest.raises(LawBroken, match="below the best of its target"):
        same_target(PROMISE, wrong(draft=neighbour(net.lm), gamma=2, beta=2.0), net)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_without_contrast_it_is_a_draft_model(temperature: float) -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    method = SpeculativeContrastive(draft=draft, alpha=0.0, beta=0.0, gamma=3)
    for seed in range(5):
        settings = Settings(max_tokens=30, temperature=temperature, seed=seed)
        (ours,) = decode(world.lm, method, [world.prompts[1]], settings)
        (theirs,) = decode(world.lm, DraftModel(draft=draft, gamma=3), [world.prompts[1]], settings)
        assert ours.tokens == theirs.tokens
        assert ours.stats.accepted == theirs.stats.accepted


def test_the_amateur_steps_once_more_only_behind_a_whole_draft() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    method = SpeculativeContrastive(draft=draft, gamma=1, beta=0.3)
    stats = decode(world.lm, method, [world.prompts[1]], Settings(max_tokens=40))[0].stats
    whole = stats.kept[0]
    assert 0 < whole < stats.rounds
    # One forward for the first token, one per drafted token, one behind each whole draft; a last round may be shorter.
    steps = 1 + stats.drafted + whole
    assert steps <= stats.draft_forwards <= steps + 2


def test_it_changes_the_text_and_implausible_tokens_stay_out() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    settings = Settings(max_tokens=24)
    plain = decode(world.lm, DraftModel(draft=draft), world.prompts, settings)
    other = decode(world.lm, SpeculativeContrastive(draft=draft, beta=3.0), world.prompts, settings)
    sure = decode(world.lm, SpeculativeContrastive(draft=draft, beta=3.0, alpha=1.0), world.prompts, settings)
    assert [a.tokens for a in plain] != [a.tokens for a in other]
    assert [a.tokens for a in plain] == [a.tokens for a in sure]  # only the expert's best is plausible


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5 is not allowed"),
        ({"beta": -1.0}, "beta=-1.0 is not allowed"),
        ({"form": "new"}, "form='new' is not allowed: improved or original"),
        ({"gamma": 0}, "gamma=0 is not allowed: at least 1"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeContrastive(**fields)


@pytest.mark.parametrize("form", ["improved", "original"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_tokens_that_the_amateur_does_not_have_are_out(form: str, alpha: float, beta: float) -> None:
    """Vocabularies of one tokenizer are padded to different sizes: the shorter row ends in -inf."""
    method = SpeculativeContrastive(alpha=alpha, beta=beta, form=form)
    expert, amateur = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    expert[90:] = -50.0
    amateur[90:] = float("-inf")
    p = method.contrast(expert, amateur).softmax(-1)
    assert p[90:].sum() == 0
    assert torch.allclose(p[:90], method.contrast(expert[:90], amateur[:90]).softmax(-1), atol=1e-5)


def test_an_amateur_of_too_short_a_context_is_refused_before_anything_is_written() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    prompt = world.prompts[1]
    draft.context_length = len(prompt) + 12
    method = SpeculativeContrastive(draft=draft)
    with pytest.raises(ValueError, match=r"may need 20 tokens of context, and the amateur .* has 19: lower max_tokens"):
        decode(world.lm, method, [prompt], Settings(max_tokens=14))
    (answer,) = decode(world.lm, method, [prompt], Settings(max_tokens=13))
    assert len(answer.tokens) == 13


def test_what_is_plausible_is_measured_among_what_may_be_written() -> None:
    """A constraint that forbids the expert's favourites leaves the best of the others plausible."""
    world = network_world("llama")
    plain = world.oracle.answer(world.prompts[0], Settings(max_tokens=12, ignore_eos=True)).tokens
    allowed = [token for token in range(40) if token not in plain]
    constraint = Trie(96, (), [tuple(allowed[i : i + 6]) for i in range(0, 24, 6)])
    method = SpeculativeContrastive(draft=neighbour(world.lm), alpha=0.9)
    (answer,) = decode(world.lm, method, [world.prompts[0]], Settings(max_tokens=12, constraint=constraint))
    assert tuple(answer.tokens) in [tuple(allowed[i : i + 6]) for i in range(0, 24, 6)]
