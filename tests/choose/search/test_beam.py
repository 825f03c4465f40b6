"""Beam search: equality with transformers is in the laws; here its candidates, ends, costs and settings."""

from __future__ import annotations

import pytest

import segue
from segue.api import Model
from segue.choose.parts import beam as driver
from segue.choose.parts.hypothesis import Hypothesis
from segue.laws.base import LawBroken
from segue.laws.targets.beam import hold
from segue.laws.worlds import network_world
from segue.models.engine import Engine


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")  # the same texts on every processor


def test_candidates_come_best_first_and_the_best_is_the_answer(model: Model) -> None:
    answer = model.generate("Once upon a time", method="beam", max_tokens=12, stop=["."])
    assert answer.candidates is not None
    assert len(answer.candidates) == 4
    scores = [c.score for c in answer.candidates]
    assert scores == sorted(scores, reverse=True)
    assert answer.tokens == answer.candidates[0].tokens
    assert answer.text == answer.candidates[0].text
    assert all("." not in c.text for c in answer.candidates)
    assert all(c.score == pytest.approx(c.logp / len(c.tokens), abs=1e-4) for c in answer.candidates)
    greedy = model.generate("Once upon a time", method="plain", max_tokens=12, stop=["."], logprobs=0)
    assert greedy.logprobs is not None
    assert max(c.logp for c in answer.candidates) >= sum(t.logprob for t in greedy.logprobs) - 1e-3


def test_one_forward_a_step_reads_all_beams(model: Model) -> None:
    answer = model.generate("Once upon a time", method="beam", max_tokens=10, ignore_eos=True)
    assert answer.stats.target_forwards == 10
    assert answer.stats.rows == answer.stats.prompt_tokens + 9 * 4
    assert answer.finish_reason == "length"


def test_log_probabilities_are_those_of_the_answer(model: Model) -> None:
    answer = model.generate("Once upon a time", method="beam", max_tokens=8, logprobs=2)
    assert answer.logprobs is not None
    assert answer.candidates is not None
    assert [t.token for t in answer.logprobs] == answer.tokens
    assert sum(t.logprob for t in answer.logprobs) == pytest.approx(answer.candidates[0].logp, abs=1e-3)


def test_all_pasts_are_given_back(model: Model) -> None:
    engines = []

    def engine() -> Engine:
        engines.append(Engine())
        return engines[-1]

    Model(model.lm, engine=engine).generate(["Hello", "Once upon"], method="beam", max_tokens=6)
    assert engines[-1].idle
    assert engines[-1]._reserved == 0


@pytest.mark.parametrize(("field", "value"), [("beams", 0), ("length_penalty", 99.0), ("early", "soon")])
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}='?{value}'? is not allowed"):
        segue.method("beam", **{field: value})


def test_a_beam_that_looks_at_too_few_candidates_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    world = network_world("llama")
    admit = driver.Beam.admit

    def hasty(self: driver.Beam, candidates: list[Hypothesis]) -> None:
        admit(self, candidates[: self.size])

    monkeypatch.setattr(driver.Beam, "admit", hasty)
    with pytest.raises(LawBroken):
        hold(segue.method("beam"), world)
