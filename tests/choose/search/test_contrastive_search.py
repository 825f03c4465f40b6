"""Contrastive search: wrong rules break its law, and on a real model it does what the paper says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

import segue
from segue.api import Model
from segue.choose.parts.lookahead import Past, Step
from segue.choose.search.contrastive_search import ContrastiveSearch
from segue.data import Scores
from segue.laws.base import LawBroken
from segue.laws.targets.contrastive_search import hold
from segue.laws.worlds import World, network_world
from segue.models.job import Piece

PROMPTS = ["Once upon a time", "User: Where can I eat?\nAssistant:", "The capital of France is"]
METHOD = ContrastiveSearch(alpha=0.5, k=5)


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def output_only(self: Any, step: Step) -> int:
    """No penalty for what the prompt said."""
    rows = slice(step.run.prompt_length - 1, None)
    return int(((1 - self.alpha) * step.p - self.alpha * step.cosines(rows).max(-1).values).argmax())


def mean(self: Any, step: Step) -> int:
    """The mean cosine instead of the largest."""
    return int(((1 - self.alpha) * step.p - self.alpha * step.cosines().mean(-1)).argmax())


def reward(self: Any, step: Step) -> int:
    """Likeness is rewarded."""
    return int(((1 - self.alpha) * step.p + self.alpha * step.cosines().max(-1).values).argmax())


def swapped(self: Any, step: Step) -> int:
    """The weights are swapped."""
    return int((self.alpha * step.p - (1 - self.alpha) * step.cosines().max(-1).values).argmax())


@pytest.mark.parametrize("wrong", [output_only, mean, reward, swapped], ids=lambda rule: rule.__name__)
def test_a_wrong_score_breaks_the_law(wrong: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    method = replace(METHOD, alpha=0.6)
    monkeypatch.setattr(ContrastiveSearch, "_choose", wrong)
    with pytest.raises(LawBroken):
        hold(method, world)


def test_a_prompt_read_in_chunks_must_give_the_states_of_all_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: Piece, scores: Scores, size: int) -> None:
        self.done += size
        if not self.rows:
            self.scores = scores

    monkeypatch.setattr(Piece, "read", forgetful)
    with pytest.raises(LawBroken):
        hold(METHOD, world)


def test_states_of_another_candidate_break_the_law(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Past.add
    monkeypatch.setattr(Past, "add", lambda self, states: add(self, states.roll(1, -1) if len(states) == 1 else states))
    with pytest.raises(LawBroken):
        hold(METHOD, world)


def repeated(tokens: list[int]) -> float:
    """The share of bigrams that came before."""
    pairs = list(itertools.pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs)


def test_it_repeats_itself_less_than_greedy_and_is_deterministic(model: Model) -> None:
    settings: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True}
    found = model.generate(PROMPTS, method=METHOD, **settings)
    again = model.generate(PROMPTS, method=METHOD, temperature=1.0, seed=3, **settings)
    greedy = model.generate(PROMPTS, method="plain", **settings)
    rates = [sum(repeated(answer.tokens) for answer in answers) / len(PROMPTS) for answers in (found, greedy)]
    assert rates[0] < rates[1] / 2, rates
    assert [a.tokens for a in found] == [a.tokens for a in again]


def test_samples_of_one_prompt_read_it_once(model: Model) -> None:
    (first, second) = model.generate(PROMPTS[0], method=METHOD, max_tokens=8, n=2)
    assert first.tokens == second.tokens == model.generate(PROMPTS[0], method=METHOD, max_tokens=8).tokens


def test_half_precision_keeps_its_states_in_float32() -> None:
    past = Past(torch.ones(2, 4, dtype=torch.bfloat16), 3)
    assert past.states.dtype == past.norms.dtype == torch.float32


@pytest.mark.parametrize("fields", [{"alpha": -0.1}, {"alpha": 1.5}, {"k": 0}, {"k": 500}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"{name}="):
        ContrastiveSearch(**fields)
