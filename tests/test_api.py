"""The front door: shapes of answers, streaming, samples, batches, and errors before any work."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import segue
from segue.api import Model, Request, make_settings, resolve
from segue.data import Completion
from segue.models.toy import ToyLM

PROMPT = "Once upon a time there was a"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


def test_one_prompt_gives_a_completion(model: Model) -> None:
    assert model.generate(PROMPT, max_tokens=4).stats.method == "auto"
    out = model.generate(PROMPT, "plain", max_tokens=16)
    assert isinstance(out, Completion)
    assert len(out.tokens) == 16
    assert out.finish_reason == "length"
    assert out.text == model.lm.decode(out.tokens)
    assert out.stats.method == "plain"
    assert out.stats.target_forwards == 16
    assert out.stats.tokens_per_forward == 1.0
    assert model.generate(model.encode(PROMPT), max_tokens=16).tokens == out.tokens


def test_a_list_gives_a_list_and_n_gives_samples(model: Model) -> None:
    outs = model.generate([PROMPT, "The", [5, 6]], "token_recycling", max_tokens=8)
    assert [len(o.tokens) for o in outs] == [8, 8, 8]
    assert outs[0].tokens == model.generate(PROMPT, max_tokens=8).tokens
    samples = model.generate(PROMPT, n=3, temperature=1.0, seed=5, max_tokens=8)
    assert len(samples) == 3
    assert samples[1].tokens == model.generate(PROMPT, temperature=1.0, seed=6, max_tokens=8).tokens
    grouped = model.generate([PROMPT, "The"], n=2, max_tokens=4)
    assert [len(g) for g in grouped] == [2, 2]


@pytest.mark.parametrize("method", ["plain", "prompt_lookup", "token_recycling", "lookahead", "draft_model"])
def test_seeds_reproduce_and_streams_join(model: Model, method: str) -> None:
    model.reset()
    options: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_tokens": 24, "stop": ["\n\n"]}
    out = model.generate(PROMPT, method, **options)
    model.reset()
    stream = model.stream(PROMPT, method, **options)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as stop:
            answer = stop.value
            break
    assert "".join(pieces) == answer.text == out.text
    assert answer.tokens == out.tokens
    assert "\n\n" not in out.text


def test_a_stream_that_is_dropped_leaves_the_model_usable(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=50)
    next(stream)
    stream.close()
    assert len(model.generate(PROMPT, max_tokens=3).tokens) == 3


def test_batch_reports_each_request_and_reads_ahead_only_a_little(model: Model) -> None:
    taken = []

    def requests() -> Any:
        for i in range(12):
            taken.append(i)
            yield Request("" if i == 4 else PROMPT, resolve("plain"), make_settings(max_tokens=3 + i % 2))

    answers = {}
    for number, answer in model.batch(requests(), ahead=3):
        answers[number] = answer
        assert len(taken) <= len(answers) + 3
    assert sorted(answers) == list(range(12))
    assert isinstance(answers[4], ValueError)
    assert all(isinstance(a, Completion) and len(a.tokens) == 3 + i % 2 for i, a in answers.items() if i != 4)


def test_threads_take_turns(model: Model) -> None:
    expected = model.generate(PROMPT, max_tokens=12).tokens
    seen: list[Any] = []
    threads = [
        threading.Thread(target=lambda m=m: seen.append(model.generate(PROMPT, m, max_tokens=12).tokens))
        for m in ("plain", "lookahead", "token_recycling")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 3


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([5, 99999], {}, "token id 99999 is outside"),
        (["fine", ""], {}, "prompt 1: the prompt is empty"),
        ("word " * 3000, {}, "has a context of"),
        ([1.5], {}, "is neither"),
        (PROMPT, {"method": "lookahed"}, "did you mean lookahead"),
        (PROMPT, {"method": 5}, "is not a method"),
        (PROMPT, {"temprature": 1}, "did you mean temperature"),
        (PROMPT, {"n": 0}, "n=0"),
        (PROMPT, {"temperature": -1}, "temperature=-1"),
    ],
)
def test_bad_input_is_refused_before_any_work(model: Model, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, **options)


def test_a_failing_run_raises_its_own_error() -> None:
    lm = ToyLM(seed=1)
    lm.table[:] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        Model(lm).generate([1, 2])


def test_method_objects_carry_their_fields(model: Model) -> None:
    method = segue.method("token_recycling", nodes="12", keep="false")
    assert (method.nodes, method.keep) == (12, False)
    out = model.generate(PROMPT, method, max_tokens=12)
    assert out.tokens == model.generate(PROMPT, max_tokens=12).tokens
    assert {m["name"] for m in segue.methods()} >= {"plain", "lookahead"}
