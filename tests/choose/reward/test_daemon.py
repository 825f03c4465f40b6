"""DAEMON: the law holds weights and resampling to their exact law; here convergence, fitting, files and human texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue.api import Model
from segue.choose.parts import energy as energies
from segue.choose.parts.energy import Energy, fit, recent, repeated
from segue.data import DraftTree, Settings, Want
from segue.laws.base import LawBroken
from segue.laws.enumerate import distribution, total_variation
from segue.laws.targets import daemon as target
from segue.laws.targets.daemon import ENERGY, hold
from segue.laws.worlds import toy_world

HELDOUT = Path(segue.__file__).parent / "bench" / "suites" / "heldout.jsonl"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


@pytest.fixture(scope="module")
def human(model: Model) -> list[list[int]]:
    return [model.lm.encode(json.loads(line)["text"]) for line in HELDOUT.read_text().splitlines()]


def test_metrics_are_counted_as_they_are_defined() -> None:
    assert repeated([1, 2, 1, 2, 1], 2) == pytest.approx(1 - 2 / 4)
    assert repeated([1], 2) == 0
    assert recent([1, 2, 1, 3, 1], 1) == 0
    assert recent([1, 2, 1, 3, 1], 2) == pytest.approx(2 / 5)


def test_more_draws_come_nearer_to_the_tilted_distribution() -> None:
    """The distance of what is given out to p_mu, both known exactly, for 1, 2 and 3 draws."""
    world = toy_world(2)
    settings = Settings(max_tokens=3)
    law = world.oracle.law(world.prompts[-1], Settings(max_tokens=3, temperature=1.0))  # type: ignore[attr-defined]
    tilted = {x: p * math.exp(-target.energy(x, math.log(p))) for x, p in law.items()}
    total = sum(tilted.values())
    tilted = {x: w / total for x, w in tilted.items()}
    distances = []
    for samples in (1, 2, 3):
        method = segue.method("daemon", energy=ENERGY, samples=samples)
        seen = distribution(world.lm, method, world.prompts[-1], settings)
        distances.append(total_variation(seen.p, tilted))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.6 * distances[0]
    assert distances[0] > 0.05


@pytest.mark.slow
def test_repetition_moves_towards_human_texts(model: Model, human: list[list[int]]) -> None:
    """At temperature 0.5 the small model repeats itself; its energy is fitted there, and what the resampling gives on
    average is compared with the average of the same draws."""
    metrics = ("sr2", "sr4", "diversity")
    energy = fit(model.lm, human, segue.method("plain"), metrics=metrics, length=48, temperature=0.5)
    facts = energy.facts
    assert facts["model_mean"]["sr4"] > 3 * facts["human"]["sr4"]
    prompts = [text[i : i + 32] for text in human[:5] for i in (48, 250, 450)]
    method = segue.method("daemon", energy=energy, samples=12, tau=1.0)
    answers = model.generate(prompts, method=method, max_tokens=48, ignore_eos=True, seed=9, temperature=0.5)
    drawn = [np.mean([repeated(c.tokens, 4) for c in a.candidates or []]) for a in answers]
    given = [sum(c.score * repeated(c.tokens, 4) for c in a.candidates or []) for a in answers]
    apart = [abs(float(np.mean(part)) - facts["human"]["sr4"]) for part in (given, drawn)]
    print("SR-4 from human:", apart, facts["human"]["sr4"])
    assert apart[0] < 0.7 * apart[1]


def test_a_small_fit_meets_the_human_means_and_survives_its_file(
    model: Model, human: list[list[int]], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    energy = fit(
        model.lm, human[:2], segue.method("plain"), metrics=("tr8", "information"), length=24, samples=3,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (energy.facts["windows"],) * 2
    for name in energy.metrics:
        human_mean, before, after = (energy.facts[of][name] for of in ("human", "model_mean", "tilted_mean"))
        assert abs(after - human_mean) < 0.25 * abs(before - human_mean) + 0.005
    # What a human wrote is scored as the model scores it.
    windows = [t[i : i + 56] for t in human[:2] for i in range(0, len(t) - 55, 56)]
    assert energy.mean[0] == pytest.approx(np.mean([recent(w[32:], 8) for w in windows]))
    logps = []
    for window in windows:
        (scores,) = model.lm.forward([(model.lm.sequence(), DraftTree.chain(window[:-1]), Want())])
        rows = scores.logits[31:].float().log_softmax(-1)
        logps.append(float(rows[range(24), window[32:]].mean()))
    assert energy.mean[1] == pytest.approx(-np.mean(logps), abs=0.02)  # bfloat16
    energy.save(tmp_path / "e.json")
    again = energies.load(str(tmp_path / "e.json"), model.lm)
    assert again == energy
    assert again.facts == energy.facts
    method = segue.method("daemon", energy=str(tmp_path / "e.json"), samples=5, show=True)
    answer = model.generate("The sea", method=method, max_tokens=24, seed=1)
    assert answer.candidates is not None
    assert sum(c.score for c in answer.candidates) == pytest.approx(1)
    assert 1 <= answer.trace[0]["effective"] <= 5
    assert set(answer.trace[1]["metrics"][0]) == {"tr8", "information"}
    assert answer.stats.target_forwards == 24 or answer.finish_reason == "stop"


def test_the_embedded_model_has_an_energy_and_others_say_how_to_fit_one(model: Model) -> None:
    answer = model.generate("Once upon a time", method=segue.method("daemon", samples=4), max_tokens=12, seed=1)
    assert answer.candidates is not None
    assert all(c.logw is not None for c in answer.candidates)
    world = toy_world(3)
    with pytest.raises(ValueError, match="comes with no energy: fit one with `segue daemon fit"):
        Model(world.lm).generate(world.prompts[0], method="daemon", max_tokens=3)


def test_broken_energies_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    with pytest.raises(ValueError, match="there is no such file"):
        energies.load(str(path), model.lm)
    for text in ("[1]", "{", '{"metrics": ["sr2"]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no energy"):
            energies.load(str(path), model.lm)
    with pytest.raises(ValueError, match="did you mean sr4"):
        Energy(("sr44",), (1.0,), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="mu="):
        Energy(("sr4",), (), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="std="):
        Energy(("sr4",), (1.0,), (0.0,), (0.0,))


def test_too_little_human_text_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"0 windows of 32 \+ 64 tokens in 1 texts"):
        fit(model.lm, [[1] * 50], segue.method("plain"))
    with pytest.raises(ValueError, match="all human windows have the same sr2"):
        fit(model.lm, [[1] * 50], segue.method("plain"), metrics=("sr2",), prefix=4, length=8, samples=1)


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("tau", 0.0)])
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        segue.method("daemon", **{field: value})


def test_answers_that_cannot_be_weighed_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="cannot be weighed"):
        model.generate("Once", method=segue.method("daemon", inner="beam"), max_tokens=3)


def test_lossless_drafters_give_the_same_law() -> None:
    world = toy_world(2)
    seen = [
        distribution(
            world.lm,
            segue.method("daemon", energy=ENERGY, samples=2, inner=inner),
            world.prompts[-1],
            Settings(max_tokens=2),
        ).p
        for inner in ("plain", "prompt_lookup")
    ]
    assert total_variation(*seen) < 1e-9


@pytest.mark.parametrize("wrong", ["no proposal", "other sign"])
def test_a_wrong_weight_breaks_the_law(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "other sign":
        of = Energy.of
        monkeypatch.setattr(Energy, "of", lambda self, run, drawn: [-e for e in of(self, run, drawn)])
    else:
        measure = energies.measure

        def forget(run: Any, drawn: Any, metrics: Any) -> Any:
            for one in drawn:
                one.log_proposal = one.log_target
            return measure(run, drawn, metrics)

        monkeypatch.setattr(energies, "measure", forget)
    with pytest.raises(LawBroken):
        hold(segue.method("daemon"), toy_world(3, 2))
