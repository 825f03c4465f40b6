from __future__ import annotations

from typing import Any

import pytest

import segue
from segue.data import Settings
from segue.decode.plain import Plain
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.sparse_to_dense import SparseToDense
from segue.decode.speculative.staged import Staged
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.worlds import neighbour, network_world, toy_world

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
    prompt = "One, two, three, four. One, two, three, four. One, two, three, four. One,"
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
