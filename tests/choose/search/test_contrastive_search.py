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
from segue.data import Scores, Settings
from segue.laws.base import LawBroken, decode
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


# What transformers 4.52.4, the last line that had contrastive search, writes on these networks: (family, prompt, alpha,
# k, repetition penalty) -> tokens.
FORMER: dict[tuple[str, tuple[int, ...], float, int, float], list[int]] = {
    ("gpt2", (3, 4, 5, 6, 7, 8), 0.6, 4, 1.0): [
        28,
        81,
        62,
        55,
        93,
        23,
        0,
        94,
        17,
        78,
        27,
        94,
        17,
        37,
        48,
        17,
        37,
        84,
        31,
        8,
    ],
    ("gpt2", (7, 9, 80, 4, 11, 12, 33, 50, 2, 61, 17, 5, 41), 0.3, 8, 1.0): [
        94,
        84,
        43,
        8,
        16,
        8,
        94,
        17,
        23,
        28,
        55,
        16,
        17,
        55,
        8,
        81,
        8,
        1,
        26,
        14,
    ],
    ("llama", (3, 4, 5, 6, 7, 8), 0.6, 5, 1.2): [
        46,
        13,
        38,
        26,
        93,
        3,
        2,
        62,
        36,
        63,
        43,
        76,
        27,
        70,
        88,
        42,
        9,
        23,
        78,
        91,
    ],
    ("llama", (7, 9, 80, 4, 11, 12, 33, 50, 2, 61, 17, 5, 41), 0.6, 4, 1.0): [
        20,
        18,
        9,
        59,
        82,
        87,
        19,
        70,
        43,
        28,
        12,
        7,
        73,
        17,
        60,
        23,
        66,
        28,
        26,
        70,
    ],
}


@pytest.mark.parametrize("case", FORMER)
def test_it_writes_what_transformers_wrote(case: tuple[str, tuple[int, ...], float, int, float]) -> None:
    family, prompt, alpha, k, penalty = case
    settings = Settings(max_tokens=20, repetition_penalty=penalty)
    (answer,) = decode(network_world(family).lm, ContrastiveSearch(alpha=alpha, k=k), [prompt], settings)
    assert answer.tokens == FORMER[case]


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
