"""AWRS: the law walks its branches; here its posterior for many particles, grammars, dead ends, its cost and errors."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest
from scipy.stats import chisquare

import segue
from segue.api import Model
from segue.choose.constrain.awrs import Awrs
from segue.choose.parts import particles as driver
from segue.data import ConstraintError, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import total_variation
from segue.laws.targets.awrs import accepted, constraints, hold, posterior, walked
from segue.laws.worlds import network_world, toy_world
from segue.ops import rejection
from segue.ops.automaton import Avoid

PERSON = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def test_many_particles_have_the_posterior_and_one_has_not() -> None:
    """Texts of a closed list, whose first token is likely and leads to unlikely ones: chi-square of what is given out
    against the exact conditional distribution."""
    world = toy_world(3, 2)
    prompt, automaton = world.prompts[-1], constraints(3, 2)[2]
    right = posterior(world, prompt, Settings(max_tokens=3, temperature=1.0, constraint=automaton))
    for particles, draws in ((1, 200), (64, 130)):
        seen: Counter[tuple[int, ...]] = Counter()
        for seed in range(draws):
            settings = Settings(max_tokens=3, temperature=1.0, constraint=automaton, seed=seed)
            (answer,) = decode(world.lm, Awrs(particles=particles), [prompt], settings)
            seen[tuple(answer.tokens)] += 1
        p = chisquare([seen[text] for text in right], [draws * share for share in right.values()]).pvalue
        print(f"{particles} particles: p = {p:.3g}")
        assert p > 0.01 if particles > 1 else p < 1e-6


def test_two_particles_are_nearer_than_one() -> None:
    """Exactly, by all branches."""
    world = toy_world(3, 2)
    for automaton in constraints(3, 2):
        settings = Settings(max_tokens=2, temperature=1.0, constraint=automaton)
        right = posterior(world, world.prompts[-1], settings)
        one, two = (
            total_variation(
                walked(Awrs(particles=n, estimator="recursive", patience=1), world, world.prompts[-1], settings)[1],
                right,
            )
            for n in (1, 2)
        )
        assert two < 0.7 * one if len(right) > 1 else one < 1e-9


def test_weights_of_a_grammar_estimate_its_probability(model: Model) -> None:
    """A pattern of one token more has its mass summed exactly by a forward over the vocabulary."""
    import torch

    prompt = model.lm.encode("Once upon a")
    world_row = model.generate(prompt, "plain", max_tokens=1, logprobs=1000).logprobs
    assert world_row is not None
    letters = {t: p for t, p in world_row[0].top if re.fullmatch(" [a-m][a-z]*", model.lm.decode([t]))}
    pattern = "|".join(sorted(re.escape(model.lm.decode([t])) for t in letters))
    answer = model.generate(prompt, Awrs(particles=150), regex=f"({pattern})", temperature=1.0, max_tokens=1, seed=2)
    mass = float(torch.tensor(list(letters.values())).exp().sum())
    assert 0.05 < mass < 0.98
    assert math.exp(answer.trace[0]["log_mass"]) == pytest.approx(mass, abs=0.15)


def test_grammars_are_kept_with_fewer_checks_than_tokens(model: Model) -> None:
    for seed in range(3):
        answer = model.generate(
            "Once upon a time", Awrs(particles=6), json_schema=PERSON, max_tokens=48, temperature=1.0, seed=seed
        )
        jsonschema.validate(json.loads(answer.text), PERSON)
        assert answer.candidates
        for candidate in answer.candidates:
            jsonschema.validate(json.loads(candidate.text), PERSON)
            assert candidate.logw is not None
        assert sum(c.score for c in answer.candidates) == pytest.approx(1)
        (trace,) = answer.trace
        checks = trace["checks_per_token"] * trace["tokens_drawn"]
        assert answer.stats.constraint_checks == pytest.approx(checks, rel=0.01)
        assert trace["checks_per_token"] < 18  # `patience` and its mask; the vocabulary has 6144 tokens
        longest = max(len(c.tokens) for c in answer.candidates)
        assert answer.stats.target_forwards <= 48
        assert answer.stats.target_forwards >= longest - 1  # all particles share every forward


def test_a_likely_constraint_takes_about_two_checks_a_token() -> None:
    """The point of the method: masks would look at 96 tokens."""
    world = network_world("llama")
    automaton = Avoid(96, [], [(5,), (6, 7)])
    settings = Settings(max_tokens=12, temperature=1.0, seed=0, constraint=automaton)
    (answer,) = decode(world.lm, Awrs(particles=8), [world.prompts[1]], settings)
    assert 2 <= answer.trace[0]["checks_per_token"] < 3
    assert answer.trace[0]["tokens_drawn"] == 8 * 12
    assert answer.stats.target_forwards == 12
    (one,) = decode(world.lm, Awrs(particles=8, estimator="none"), [world.prompts[1]], settings)
    assert 1 <= one.trace[0]["checks_per_token"] < 1.5


def test_dead_ends_weigh_nothing_and_all_dead_is_an_error() -> None:
    """Where the model's settings leave one token and the constraint forbids it, nothing is given out."""
    world = network_world("llama")
    prompt = world.prompts[0]
    plain = world.oracle.answer(prompt, Settings(max_tokens=4)).tokens
    banned = Avoid(96, [], [tuple(plain[2:4])])
    with pytest.raises(ConstraintError, match="no text that satisfies"):
        decode(world.lm, Awrs(), [prompt], Settings(max_tokens=4, temperature=1.0, top_k=1, constraint=banned))
    for seed in range(4):
        settings = Settings(max_tokens=4, temperature=1.0, top_k=2, constraint=Avoid(96, [], [(plain[0],)]), seed=seed)
        (answer,) = decode(world.lm, Awrs(particles=4), [prompt], settings)
        assert accepted(settings.constraint, answer.tokens)  # type: ignore[arg-type]


def test_it_refuses_what_it_cannot_do(model: Model) -> None:
    with pytest.raises(ConstraintError, match="awrs samples under a constraint: give"):
        model.generate("Once", method="awrs", max_tokens=4)
    for field, value in (
        ("particles", 0), ("accepts", 1), ("resample", 1.5), ("patience", -1), ("temperature", 0.0), ("estimator", "x"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}={value!r} is not allowed"):
            segue.method("awrs", **{field: value})


def test_a_seed_says_everything(model: Model) -> None:
    settings: dict[str, Any] = {"regex": "[a-z ]{5,30}", "max_tokens": 20, "temperature": 1.0, "seed": 3}
    alone = model.generate("Once", "awrs", **settings)
    for other in model.generate(["Once", "Twice", "Once"], "awrs", **settings)[::2]:
        assert other.tokens == alone.tokens
        assert [c.text for c in other.candidates or []] == [c.text for c in alone.candidates or []]
        weights = [[c.logw for c in one.candidates or []] for one in (other, alone)]
        assert weights[0] == pytest.approx(weights[1], abs=1e-3)  # what stands beside a row may turn its last bits


@pytest.mark.parametrize("wrong", ["no weight", "coin upside down", "mean forgotten", "drawn evenly"])
def test_a_wrong_weight_breaks_the_law(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    world = toy_world(2)
    recursive, resample = rejection.recursive, driver._resample
    if wrong == "no weight":
        monkeypatch.setattr(rejection, "recursive", rejection.first)
    elif wrong == "coin upside down":

        def turned(*asked: Any) -> Any:
            token, weight = recursive(*asked)
            return token, 1 - weight if 0 < weight < 1 else weight

        monkeypatch.setattr(rejection, "recursive", turned)
    elif wrong == "mean forgotten":

        def forget(run: Any, cloud: Any) -> None:
            resample(run, cloud)
            for one in cloud.living:
                one.logw = 0.0

        monkeypatch.setattr(driver, "_resample", forget)
    else:

        def evenly(run: Any, cloud: Any) -> None:
            mean = cloud.total
            for one in cloud.living:
                one.logw = mean

        monkeypatch.setattr(driver, "_resample", evenly)
    with pytest.raises(LawBroken):
        hold(Awrs(), world)
