"""CARDS: the law has its exact distribution; here its cost, rewards of every kind, dead ends and errors."""

from __future__ import annotations

import re
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.parts.unit import Unit
from segue.choose.reward import cards as module
from segue.choose.reward.cards import Cards
from segue.data import ConstraintError, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.targets.cards import NEVER, Counted, hold, worth
from segue.laws.worlds import network_world, toy_world
from segue.ops.automaton import Avoid
from tests.mutation import mutate


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def vowels(prompt: str, texts: list[str]) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


def test_segments_are_cheaper_than_whole_answers_at_equal_reward() -> None:
    """The reward is a sum over tokens, which is the favourable case; and every token that is drawn counts."""
    world = toy_world(3)

    def mean(**fields: Any) -> tuple[float, float]:
        method = Cards(reward=Counted(), tries=200, **fields)
        rewards, tokens = [], []
        for seed in range(50):
            settings = Settings(max_tokens=12, temperature=1.0, seed=seed)
            (answer,) = decode(world.lm, method, [world.prompts[0]], settings)
            rewards.append(worth(answer.tokens))
            tokens.append(answer.stats.drafted)
        return sum(rewards) / len(rewards), sum(tokens) / len(tokens)

    plain, whole, segments = (
        mean(r_star=NEVER),
        mean(r_star=5.0, unit="whole", alpha=1.0),
        mean(r_star=4.0, tau_u=0.8, least=2, most=4),
    )
    print(f"reward and tokens: plain {plain}, whole answers {whole}, segments {segments}")
    assert plain[1] == 12
    assert plain[0] + 1 < whole[0] <= segments[0]
    assert segments[1] < 0.6 * whole[1]


def test_rewards_of_texts_rise_on_a_real_model(model: Model) -> None:
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 0.9, "seed": 2}
    prompts = ["Once upon a time", "The old man", "It was a dark night"]
    plain = model.generate(prompts, "plain", **settings)
    place = f"{__name__}:vowels"
    better = model.generate(prompts, Cards(reward=place, r_star="quantile:0.9", beta=0.01, alpha=1.0), **settings)
    for answer, free in zip(better, plain, strict=True):
        reward = vowels("", [answer.text])[0]
        print(f"{reward:.3f}, and of pilots {answer.trace[0]['mean']:.3f}, of plain {vowels('', [free.text])[0]:.3f}")
        assert reward > answer.trace[0]["mean"]
    for answer in better:
        pilots, *segments = answer.trace
        assert pilots["pilots"] == 8
        assert segments[-1]["tokens"] == len(answer.tokens)
        assert answer.stats.accepted == len(answer.tokens)
        assert answer.stats.drafted > pilots["tokens"]
        assert answer.stats.rounds == len(segments) + sum(s["refused"] - (not s["accepted"]) for s in segments)
        assert answer.stats.scorer_calls <= answer.stats.rounds + 8 + 1
        assert answer.candidates is not None
        assert answer.candidates[0].score == pytest.approx(vowels("", [answer.text])[0])


def test_a_pattern_is_wanted(model: Model) -> None:
    method = Cards(reward="regex:[Kk]ing", r_star=2.0, beta=0.1, tries=12)
    answer = model.generate("The king said", method, max_tokens=60, temperature=1.0, seed=0)
    plain = model.generate("The king said", "plain", max_tokens=60, temperature=1.0, seed=0)
    assert len(re.findall("[Kk]ing", answer.text)) > len(re.findall("[Kk]ing", plain.text))


def test_answers_are_written_side_by_side(model: Model) -> None:
    """Three answers share forwards, and the best one is given."""
    settings: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "seed": 4, "ignore_eos": True}
    three = model.generate("Once", Cards(samples=3, r_star=NEVER), **settings)
    assert three.stats.target_forwards == 24
    assert three.candidates is not None
    assert len(three.candidates) == 3
    scores = [candidate.score for candidate in three.candidates]
    assert scores == sorted(scores, reverse=True)
    for candidate in three.candidates:
        assert candidate.score == pytest.approx(candidate.logp / 24)
    assert {entry["answer"] for entry in three.trace} == {0, 1, 2}


def test_the_best_refused_segment_is_taken_in_the_end() -> None:
    world = toy_world(3)
    method = Cards(reward=Counted(), r_star=1e9, tries=6, unit="token", least=1, beta=1.0)
    (answer,) = decode(world.lm, method, [world.prompts[0]], Settings(max_tokens=8, temperature=1.0, seed=1))
    assert all(not entry["accepted"] and entry["refused"] == 7 for entry in answer.trace)
    assert answer.stats.rounds == 7 * 8
    (plain,) = decode(world.lm, segue.method("plain"), [[0]], Settings(max_tokens=8, temperature=1.0, seed=1))
    assert worth(answer.tokens) > worth(plain.tokens)
    assert worth(answer.tokens) == answer.trace[-1]["reward"]


def test_constraints_are_kept_and_dead_ends_given_up(model: Model) -> None:
    pattern = "[a-z]{3,12}( [a-z]{3,12}){2,5}"
    answer = model.generate(
        "Words:", Cards(reward="lm", r_star=-2.0, tries=3), max_tokens=30, temperature=1.0, regex=pattern, seed=1
    )
    assert re.fullmatch(pattern, answer.text.strip())
    world = toy_world(3, 2)
    pairs = [(a, b) for a in (0, 1) for b in (0, 1)]
    nothing = Settings(max_tokens=4, min_tokens=3, temperature=1.0, constraint=Avoid(3, [2], pairs))
    with pytest.raises(ConstraintError, match="no text that satisfies"):
        decode(world.lm, Cards(r_star=0.0, tries=3), [[0]], nothing)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("reward", "lmm", "did you mean lm"),
        ("reward", "regex:(", "no regular expression"),
        ("reward", "nowhere.at:all", "cannot be imported"),
        ("r_star", "high", "quantile:Q"),
        ("r_star", "quantile:1.5", "quantile:Q"),
        ("unit", "segment", "unit='segment' is not known"),
        ("least", 65, "most=64"),
        ("tries", 0, "tries=0 is not allowed"),
        ("samples", 0, "samples=0 is not allowed"),
        ("pilots", 0, "pilots=0 is not allowed"),
        ("alpha", 1.5, "alpha=1.5 is not allowed"),
        ("beta", 0.0, "beta=0.0 is not allowed"),
        ("temperature", 0.0, "temperature=0.0 is not allowed"),
    ],
)
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        segue.method("cards", **{field: value})


def test_units_of_texts_need_texts() -> None:
    world = network_world("llama")
    with pytest.raises(ValueError, match="has no tokenizer"):
        decode(world.lm, Cards(unit="sentence", r_star=0.0), [[1, 2]], Settings(max_tokens=9, temperature=1.0))
    marked = Cards(unit=Unit("step", marks=(1,)), reward=Counted(), r_star=NEVER)
    decode(world.lm, marked, [[1, 2]], Settings(max_tokens=9, temperature=1.0))


WRONG = {
    "threshold does not rise": ("_Bar", "at", "n * (self.goal", "0 * (self.goal"),
    "threshold has no ceiling": ("_Bar", "at", "min(self.goal, ", "max(self.goal, "),
    "softness upside down": ("Cards", "_keeps", "above / self.beta", "above * self.beta"),
    "the last one is put to the test": ("Cards", "_accepted", "refused < self.tries and ", ""),
    "the worst is taken": ("Cards", "_accepted", "new.score > best.score", "new.score < best.score"),
    "refused text goes on": ("Cards", "_accepted", "taken or best is None", "True or best is None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_breaks_the_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, function, old, new = WRONG[name]
    mutate(monkeypatch, getattr(module, owner), function, old, new)
    with pytest.raises(LawBroken):
        hold(Cards(), toy_world(2))
