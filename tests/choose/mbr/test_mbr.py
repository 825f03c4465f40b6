"""Minimum Bayes risk: the law holds it to sacrebleu; here its costs, its inner methods, the medoid, and mutations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import segue
from segue.api import Model
from segue.choose.parts import rerank, utility
from segue.laws.base import LawBroken
from segue.laws.targets.mbr import hold
from segue.laws.worlds import network_world, toy_world
from segue.models.engine import Engine

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def test_samples_share_the_prompt_and_their_forwards(model: Model) -> None:
    answer = model.generate(PROMPT, method="mbr", max_tokens=10, seed=1, ignore_eos=True)
    assert answer.stats.target_forwards == 10
    assert answer.stats.prefill_forwards == 1
    assert answer.stats.rows == answer.stats.prompt_tokens + 9 * 8
    assert answer.stats.scorer_calls == 64
    assert answer.candidates is not None
    assert len(answer.candidates) == 8
    assert answer.text == answer.candidates[0].text
    assert answer.trace[0] == {"drawn": 8, "counts": [1] * 8}


def test_the_embedding_medoid_is_found(model: Model) -> None:
    method = segue.method("mbr", utility="embedding", samples=6, show=True)
    answer = model.generate(PROMPT, method=method, max_tokens=8, seed=2)
    texts, utilities = answer.trace[1]["texts"], np.array(answer.trace[1]["utilities"])
    assert utilities == pytest.approx(utilities.T)
    assert utilities.diagonal() == pytest.approx(1, abs=1e-6)
    assert answer.text == texts[int(utilities.mean(1).argmax())]
    assert int(utilities.mean(1).argmax()) == int((1 - utilities).sum(1).argmin())  # the medoid


def test_a_search_gives_its_n_best_list(model: Model) -> None:
    beam = model.generate(PROMPT, method=segue.method("beam", beams=5), max_tokens=8)
    answer = model.generate(PROMPT, method=segue.method("mbr", inner="beam", samples=5), max_tokens=8)
    assert answer.candidates is not None
    assert beam.candidates is not None
    assert {c.text: round(c.logp, 3) for c in answer.candidates} == {c.text: round(c.logp, 3) for c in beam.candidates}
    assert answer.stats.target_forwards == beam.stats.target_forwards


def test_a_lossless_drafter_draws_the_samples_in_fewer_forwards() -> None:
    model = segue.model(dtype="float32")  # in bfloat16 two tokens may be level, and both are left
    prompt = "One, two, three, four. One, two, three, four. One, two,"
    plain = model.generate(
        prompt, method=segue.method("mbr", samples=2), max_tokens=24, top_k=1, temperature=1.0, seed=0
    )
    faster = segue.method("mbr", samples=2, inner="prompt_lookup")
    drafted = model.generate(prompt, method=faster, max_tokens=24, top_k=1, temperature=1.0, seed=0)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.target_forwards < plain.stats.target_forwards
    assert drafted.stats.accepted > 0
    assert drafted.trace[0]["counts"] == plain.trace[0]["counts"] == [2]


def test_stop_strings_and_log_probabilities_are_those_of_the_answer(model: Model) -> None:
    answer = model.generate(PROMPT, method="mbr", max_tokens=30, seed=3, stop=["e"], logprobs=1)
    assert answer.candidates is not None
    assert all("e" not in c.text for c in answer.candidates)
    assert answer.finish_reason == "stop"
    assert answer.logprobs is not None
    assert [t.token for t in answer.logprobs] == answer.tokens
    assert sum(t.logprob for t in answer.logprobs) == pytest.approx(answer.candidates[0].logp, abs=1e-3)


def test_a_batch_answers_as_one_by_one(model: Model) -> None:
    prompts = [PROMPT, "The old king", "def add(a, b):"]
    together = model.generate(prompts, method="mbr", max_tokens=8, seed=4)
    assert [a.text for a in together] == [model.generate(p, method="mbr", max_tokens=8, seed=4).text for p in prompts]


def test_all_pasts_are_given_back(model: Model) -> None:
    engines: list[Engine] = []

    def engine() -> Engine:
        engines.append(Engine())
        return engines[-1]

    method = segue.method("mbr", utility="judge", samples=3)
    Model(model.lm, engine=engine).generate(["Hello", "Once upon"], method=method, max_tokens=6)
    assert engines[-1].idle
    assert engines[-1]._reserved == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples", 0), ("temperature", 0.0), ("references", -1), ("duplicates", "drop"), ("utility", "blue")],
)
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}='?{value}'? is not"):
        segue.method("mbr", **{field: value})


def test_an_inner_method_that_is_still_a_name_is_refused(model: Model) -> None:
    from segue.choose.mbr.mbr import Mbr

    with pytest.raises(ValueError, match=r"inner='plain' is no method: make this one with segue.method"):
        model.generate(PROMPT, method=Mbr(), max_tokens=2)


def _likeliest(drawn: Sequence[Any]) -> list[Any]:
    return sorted(drawn, key=lambda d: -d.logp)


def _first(run: Any, drawn: Sequence[Any], references: int) -> list[int]:
    return [1, *[0] * (len(drawn) - 1)]


def _unmerged(drawn: Any, **_: Any) -> list[Any]:
    found = {d.words: d for d in drawn}
    return list(found.values())


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [("segue.choose.mbr.mbr", "ranked", _likeliest), (utility, "_subset", _first), (rerank, "distinct", _unmerged)],
)
def test_a_wrong_rule_breaks_the_law(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Callable[..., Any]
) -> None:
    target = module if isinstance(module, str) else module.__name__
    monkeypatch.setattr(f"{target}.{name}", wrong)
    with pytest.raises((LawBroken, ValueError)):
        hold(segue.method("mbr"), toy_world(3, 2))


def test_a_score_that_is_off_breaks_the_law_on_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = utility.Chrf.matrix
    monkeypatch.setattr(utility.Chrf, "matrix", lambda self, c, r: matrix(self, r, c).T)  # F is not symmetric
    with pytest.raises(LawBroken):
        hold(segue.method("mbr"), network_world("llama"))


def test_the_settings_of_the_request_are_kept(model: Model) -> None:
    cold = model.generate(PROMPT, method="mbr", max_tokens=6, seed=5, temperature=1e-4)
    assert cold.trace[0] == {"drawn": 8, "counts": [8]}
    assert cold.tokens == model.generate(PROMPT, method="plain", max_tokens=6).tokens
