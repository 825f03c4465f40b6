from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import segue
from segue import catalog
from segue.data import DraftTree, Scores, Settings
from segue.decode.plain import Plain
from segue.decode.speculative.base import Budget, Outcome
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.sparse_to_dense import SparseToDense
from segue.decode.speculative.staged import Staged
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import NetworkOracle
from segue.laws.same_distribution import same_distribution
from segue.laws.suite import ORDINARY, build, load
from segue.laws.worlds import neighbour, network_world, toy_world
from segue.models.run import Request, Run

INNER = [PromptLookup(), TokenRecycling(nodes=8, depth=3)]


@pytest.mark.parametrize("inner", INNER)
def test_greedy_proposals_are_those_of_the_draft_model(inner: Any) -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    for prompt in world.prompts:
        settings = Settings(max_tokens=40)
        (alone,) = decode(world.lm, DraftModel(draft=draft, gamma=4), [prompt], settings)
        (staged,) = decode(world.lm, Staged(draft=draft, inner=inner, gamma=4), [prompt], settings)
        assert staged.tokens == alone.tokens
        assert (staged.stats.drafted, staged.stats.accepted) == (alone.stats.drafted, alone.stats.accepted)
        assert staged.stats.target_forwards == alone.stats.target_forwards


def test_the_draft_model_runs_fewer_forwards_on_a_text_that_repeats() -> None:
    model = segue.model(dtype="float32")
    prompt = "Red, green, blue. Red, green, blue. Red, green, blue. Red,"
    settings: dict[str, Any] = {"max_tokens": 64, "ignore_eos": True}
    alone = model.generate(prompt, DraftModel(draft="mini-draft", gamma=8), **settings)
    staged = model.generate(prompt, Staged(draft="mini-draft", inner=PromptLookup(), gamma=8), **settings)
    assert staged.tokens == alone.tokens
    print(f"draft forwards: {alone.stats.draft_forwards} alone, {staged.stats.draft_forwards} staged")
    assert staged.stats.draft_forwards < 0.95 * alone.stats.draft_forwards
    assert staged.stats.target_forwards == alone.stats.target_forwards


@pytest.mark.parametrize("inner", [PromptLookup(), "nested"])
def test_samples_follow_the_model(inner: Any) -> None:
    world = toy_world(2)
    draft = neighbour(world.lm)
    if inner == "nested":
        inner = Staged(draft=neighbour(world.lm, 3), inner=PromptLookup(), gamma=2)
    settings = Settings(temperature=1.0, max_tokens=3)
    found = distribution(world.lm, Staged(draft=draft, inner=inner, gamma=2), [0, 1, 0, 1], settings, 400_000)
    assert found.accepting
    assert found.refusing
    assert total_variation(found.p, world.oracle.law([0, 1, 0, 1], settings)) < 1e-6  # type: ignore[attr-defined]


class Forged(Staged):
    """Says that its tokens were drawn from the rows of another place."""

    def _place(self, run: Any, tree: Any, parent: int, row: Any, token: int) -> int:
        return super()._place(run, tree, parent, row.flip(0), token)


def test_wrong_rows_are_found_out() -> None:
    world = toy_world(2)
    settings = Settings(temperature=1.0, max_tokens=3)
    method = Forged(draft=neighbour(world.lm), inner=PromptLookup(), gamma=2)
    found = distribution(world.lm, method, [0, 1, 0, 1], settings, 400_000)
    assert total_variation(found.p, world.oracle.law([0, 1, 0, 1], settings)) > 1e-3  # type: ignore[attr-defined]


def test_three_stages_change_counters_and_no_token() -> None:
    world = network_world("qwen3")
    first, second, third = (neighbour(world.lm, seed) for seed in (1, 2, 3))
    deepest = Staged(draft=third, inner=PromptLookup(), gamma=3)
    method = Staged(draft=first, inner=Staged(draft=second, inner=deepest, gamma=3), gamma=5)
    settings = Settings(max_tokens=40)
    answers = decode(world.lm, method, world.prompts, settings)
    for answer, expected in zip(answers, decode(world.lm, Plain(), world.prompts, settings), strict=True):
        assert answer.tokens == expected.tokens
        assert answer.stats.accepted > 0


def test_siblings_come_from_the_same_rows() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    settings = Settings(max_tokens=60)
    plain, wide = (
        decode(world.lm, Staged(draft=draft, inner=PromptLookup(), siblings=n), world.prompts, settings) for n in (0, 3)
    )
    assert [a.tokens for a in plain] == [a.tokens for a in wide]
    assert sum(a.stats.target_forwards for a in wide) < sum(a.stats.target_forwards for a in plain)


def test_what_cannot_be_an_inner_drafter_says_so() -> None:
    world = network_world("llama")
    with pytest.raises(ValueError, match="inner='prompt_lookup' is no drafter"):
        decode(world.lm, Staged(draft=world.lm), [[1, 2]], Settings(max_tokens=4))
    method = Staged(draft=neighbour(world.lm), inner=SparseToDense())
    with pytest.raises(ValueError, match="cannot draft for a draft model"):
        decode(world.lm, method, [world.prompts[1]], Settings(max_tokens=20))
    with pytest.raises(ValueError, match="gamma=0 is not allowed: at least 1"):
        Staged(gamma=0)


@pytest.mark.parametrize("name", ["draft_model", "multi_candidate", "recursive", "dyspec", "rasd", "staged"])
def test_an_inner_drafter_with_a_draft_model_is_cut_back_as_well(name: str) -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    method = Staged(draft=draft, inner=segue.method(name, draft=neighbour(draft, 5)), gamma=3)
    settings = Settings(max_tokens=30)
    for prompt, answer in zip(world.prompts, decode(world.lm, method, world.prompts, settings), strict=True):
        assert answer.tokens == world.oracle.answer(prompt, settings).tokens
        assert answer.stats.accepted < answer.stats.drafted
    toy = toy_world(3)
    draft = neighbour(toy.lm)
    method = Staged(draft=draft, inner=segue.method(name, draft=neighbour(draft, 5)), gamma=3)
    assert same_distribution(method, toy.lm, toy.prompts[-1], Settings(temperature=1.0, max_tokens=3)).accepting


def test_who_decides_otherwise_is_no_inner_drafter() -> None:
    world = network_world("llama")
    inner = segue.method("speculative_contrastive", draft=neighbour(world.lm))
    with pytest.raises(ValueError, match="inner: SpeculativeContrastive follows another distribution than the model's"):
        decode(world.lm, Staged(draft=neighbour(world.lm), inner=inner), [world.prompts[1]], Settings(max_tokens=4))


def test_a_sibling_that_was_accepted_is_read_by_the_draft_model() -> None:
    """A right sibling ends the round in place of the draft model's own token: the next rows must follow it."""
    world = network_world("gpt2")
    draft = neighbour(world.lm)
    oracle = NetworkOracle(draft)  # type: ignore[arg-type]
    beside = 0

    @dataclass(frozen=True)
    class Spied(Staged):
        def propose(self, run: Run, state: Any, budget: Budget) -> Generator[Request, Scores, DraftTree]:
            tree = yield from super().propose(run, state, budget)
            if tree.rows:
                row = oracle.answer(run.ids, Settings(max_tokens=1)).logits[0]
                assert torch.allclose(tree.rows[0], row, atol=1e-4)
            return tree

        def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
            nonlocal beside
            beside += any(outcome.tree.parents[n] == outcome.tree.parents[n - 1] for n in outcome.path[1:])
            super().observe(run, state, outcome)

    decode(world.lm, Spied(draft=draft, inner=PromptLookup(), siblings=3), world.prompts[1:3], Settings(max_tokens=40))
    assert beside > 2


OTHERS = [
    name
    for name, entry in catalog.entries().items()
    if entry.family == "decode/speculative" and {type(p).__name__ for p in entry.card.exact} >= {"SameTokens"}
]


@pytest.mark.parametrize("name", OTHERS)
def test_any_drafter_may_draft_for_the_draft_model_or_says_that_it_cannot(name: str) -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    prompt, settings = world.prompts[2], Settings(max_tokens=24)
    method = Staged(draft=draft, inner=build(load(name), draft, ORDINARY), gamma=4)
    if name in ("sparse_to_dense", "specextend"):
        with pytest.raises(ValueError, match="cannot draft for a draft model"):
            decode(world.lm, method, [prompt], settings)
        return
    (alone,) = decode(world.lm, DraftModel(draft=draft, gamma=4), [prompt], settings)
    (staged,) = decode(world.lm, method, [prompt], settings)
    assert staged.tokens == alone.tokens
    assert (staged.stats.drafted, staged.stats.accepted) == (alone.stats.drafted, alone.stats.accepted)
    # Sampled text may come from other draws, but it must come.
    (sampled,) = decode(world.lm, method, [prompt], Settings(max_tokens=24, temperature=0.8, seed=3))
    assert len(sampled.tokens) == 24


@pytest.mark.parametrize("gamma", [3, 5, 8])
@pytest.mark.parametrize("perfect", [True, False])
def test_an_inner_drafter_without_forwards_never_costs_the_draft_model_any(perfect: bool, gamma: int) -> None:
    """Behind a whole draft the draft model lacks a token: it is read in the forward that comes anyway."""
    world = network_world("llama")
    draft = world.lm if perfect else neighbour(world.lm)
    settings = Settings(max_tokens=48)
    for prompt in world.prompts:
        (alone,) = decode(world.lm, DraftModel(draft=draft, gamma=gamma), [prompt], settings)
        for inner in INNER:
            (staged,) = decode(world.lm, Staged(draft=draft, inner=inner, gamma=gamma), [prompt], settings)
            assert staged.tokens == alone.tokens
            # One more, since the prompt is read apart from the first token's row.
            assert staged.stats.draft_forwards <= alone.stats.draft_forwards + 1


def test_a_sampled_run_is_the_same_text_with_and_without_the_inner_stage() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    for seed in range(4):
        settings = Settings(max_tokens=30, temperature=0.8, seed=seed)
        (alone,) = decode(world.lm, DraftModel(draft=draft, gamma=4), [world.prompts[2]], settings)
        (staged,) = decode(world.lm, Staged(draft=draft, inner=PromptLookup(), gamma=4), [world.prompts[2]], settings)
        assert staged.tokens == alone.tokens


def test_a_backend_of_few_leaves_is_given_no_more() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    draft.most_leaves = 2
    forward, widest = draft.forward, []

    def heard(asks: Any) -> Any:
        widest.extend(len(tree.leaves()) for _, tree, _ in asks)
        return forward(asks)

    draft.forward = heard  # type: ignore[method-assign]
    decode(world.lm, Staged(draft=draft, inner=TokenRecycling(nodes=20)), [world.prompts[1]], Settings(max_tokens=30))
    assert max(widest) == 2
