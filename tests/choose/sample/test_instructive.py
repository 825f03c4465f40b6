"""Instructive decoding: its target is in the laws; here transformers' guidance as the oracle, and the distortions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

import segue
from segue.api import Model
from segue.choose.sample.instructive import Instructive
from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.targets.instructive import hold
from segue.laws.worlds import network, toy_world
from segue.models.run import Run
from segue.models.transformers.load import wrap
from segue.ops.distort import OPPOSITE, distorted, replaced

PROMPT = "Tell a story about a small dog.\n\nOnce upon a time"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


@pytest.fixture(scope="module")
def original() -> Any:
    return network("llama")


@pytest.mark.parametrize("eps", [0.15, 0.3, 0.6])
def test_it_is_guidance_of_transformers_token_by_token(original: Any, eps: float) -> None:
    """g * log p + (1 - g) * log p' with g = 1 / (1 - eps) has the arg-max of z - eps * z'."""
    lm = wrap(copy.deepcopy(original), name="guided")
    prompt, noisy = [5, 9, 33, 2, 7], [60, 61, 33, 2, 7]
    method = Instructive(eps=eps, instruction=2, noisy=(60, 61))
    (answer,) = decode(lm, method, [prompt], Settings(max_tokens=24))
    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(1 / (1 - eps), original, torch.tensor([noisy]))
    ids = torch.tensor([prompt])
    expected = original.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0,
        logits_processor=LogitsProcessorList([guide]),
    )  # fmt: skip
    assert answer.tokens == expected[0, 5:].tolist()
    (plain,) = decode(lm, segue.method("plain"), [prompt], Settings(max_tokens=24))
    assert answer.tokens != plain.tokens


def test_the_original_as_noise_is_greedy(model: Model) -> None:
    method = Instructive(eps=0.5, instruction="Tell a story", noisy="Tell a story")
    answer = model.generate(PROMPT, method=method, max_tokens=16)
    assert answer.tokens == model.generate(PROMPT, method="plain", max_tokens=16).tokens


def test_both_streams_share_their_forwards(model: Model) -> None:
    answer = model.generate(PROMPT, method="instructive", max_tokens=10, ignore_eos=True)
    assert answer.stats.target_forwards == 10
    run = Run(model.lm, model.lm.encode(PROMPT), Settings())
    second = Instructive().streams(run)[0]
    assert answer.stats.rows == len(run.ids) + len(second) + 2 * 9


def test_samples_of_one_prompt(model: Model) -> None:
    answers = model.generate(PROMPT, method="instructive", n=2, temperature=1.0, seed=1, max_tokens=6)
    alone = model.generate(PROMPT, method="instructive", temperature=1.0, seed=1, max_tokens=6)
    assert answers[0].tokens == alone.tokens


@pytest.mark.parametrize(
    ("method", "front"),
    [
        (Instructive(), OPPOSITE),
        (Instructive(kind="null"), ""),
        (Instructive(noisy="Sing."), "Sing."),
        (Instructive(instruction="small dog", noisy="cat"), "Tell a story about a cat."),
    ],
)
def test_only_the_instruction_is_replaced(model: Model, method: Instructive, front: str) -> None:
    run = Run(model.lm, model.lm.encode(PROMPT), Settings())
    (ids,) = method.streams(run)
    assert ids == model.lm.encode(front + "\n\nOnce upon a time")


def test_words_are_thinned_shuffled_or_drawn(model: Model) -> None:
    run = Run(model.lm, model.lm.encode(PROMPT), Settings())
    (thin,) = Instructive(kind="truncate_shuffle", share=0.4, seed=2).streams(run)
    words = model.lm.decode(thin).partition("\n\n")[0].split()
    assert 0 < len(words) < 7
    assert set(words) < {"Tell", "a", "story", "about", "small", "dog."}
    (drawn,) = Instructive(kind="random_words", words=4).streams(run)
    assert len(model.lm.decode(drawn).partition("\n\n")[0].split()) == 4
    assert drawn != Instructive(kind="random_words", words=4, seed=1).streams(run)[0]
    assert drawn == Instructive(kind="random_words", words=4).streams(run)[0]
    everything = distorted(list("abcdef"), "truncate_shuffle", share=0.0, count=0, pool=[], seed=0)
    assert sorted(everything) == list("abcdef") != everything


def test_what_cannot_be_found_is_said(model: Model) -> None:
    with pytest.raises(ValueError, match="instruction='nowhere' is not allowed: the prompt does not have it"):
        model.generate(PROMPT, method=Instructive(instruction="nowhere"), max_tokens=2)
    with pytest.raises(ValueError, match="no text before a blank line"):
        model.generate("Once upon a time", method="instructive", max_tokens=2)
    with pytest.raises(ValueError, match="instruction=99 is not allowed: the prompt has"):
        model.generate(PROMPT, method=Instructive(instruction=99), max_tokens=2)
    with pytest.raises(ValueError, match="has no tokenizer"):
        decode(toy_world(3).lm, Instructive(), [[0, 1]], Settings(max_tokens=2))
    assert replaced("a a\n\nb", "", "c") == "c\n\nb"


def test_a_second_prompt_must_fit_as_well() -> None:
    lm = toy_world(3).lm
    with pytest.raises(ValueError, match="do not fit the context of 64"):
        decode(lm, Instructive(instruction=1, noisy=(1,) * 40), [[0] * 20], Settings(max_tokens=30))


@pytest.mark.parametrize(
    ("field", "value"),
    [("eps", 1.0), ("eps", -0.1), ("kind", "loud"), ("share", 2.0), ("words", 0), ("instruction", 0)],
)
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}='?{value}'? is not allowed"):
        segue.method("instructive", **{field: value})


def test_a_stream_without_the_output_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    mix = Instructive.mix

    def stale(self: Instructive, rows: list[Any]) -> Any:
        kept.append(rows[1])
        return mix(self, [rows[0], kept[0]])

    monkeypatch.setattr(Instructive, "mix", stale)
    with pytest.raises(LawBroken, match="total variation"):
        hold(Instructive(), toy_world(3))
