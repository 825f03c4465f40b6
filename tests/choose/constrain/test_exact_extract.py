"""Exact extraction on real questions: always a span, never worse than greed, and not dearer than it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import segue
from segue.api import Model
from segue.choose.constrain.exact_extract import ExactExtract
from segue.data import Completion
from segue.laws.base import LawBroken
from segue.laws.targets.exact_extract import hold
from segue.laws.worlds import toy_world
from segue.models.source import EMBEDDED

QUESTIONS = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "squad.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


@pytest.fixture(scope="module")
def answers(model: Model) -> list[Completion]:
    return [
        model.generate(prompt(q), method=ExactExtract(passage=q["context"], longest=12), max_tokens=12)
        for q in QUESTIONS[:8]
    ]


def prompt(question: dict[str, str]) -> str:
    return f"Context: {question['context']}\nQuestion: {question['question']}\nAnswer:"


@pytest.fixture(scope="module")
def network() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "mini", dtype=torch.float32)


def log_p(network: Any, ids: list[int], tokens: list[int], ends: list[int]) -> float:
    """Of the tokens and an end behind them, by one forward pass of the network itself."""
    with torch.no_grad():
        rows = network(torch.tensor([ids + tokens]), use_cache=False).logits[0].log_softmax(-1)
    places = range(len(ids) - 1, len(ids) + len(tokens) - 1)
    own = sum(float(rows[i, t]) for i, t in zip(places, tokens, strict=True))
    return own + float(rows[-1, ends].logsumexp(0))


def test_every_candidate_is_a_span_of_the_passage(answers: list[Completion]) -> None:
    for question, answer in zip(QUESTIONS, answers, strict=False):
        assert answer.candidates
        assert len(answer.candidates) == 5
        assert all(c.text in " " + question["context"] for c in answer.candidates)
        assert answer.text == answer.candidates[0].text


def test_costs_are_the_networks_own_and_no_sampled_span_is_cheaper(
    model: Model, network: Any, answers: list[Completion]
) -> None:
    lm = model.lm
    ends = sorted({*lm.eos_ids, *lm.encode("\n", special=False)})
    generator = torch.Generator().manual_seed(0)
    for question, answer in list(zip(QUESTIONS, answers, strict=False))[:4]:
        assert answer.candidates
        ids = model.encode(prompt(question))
        best = log_p(network, ids, answer.tokens, ends)
        assert best == pytest.approx(answer.candidates[0].score, abs=1e-3)
        passage = lm.encode("a " + question["context"], special=False)[1:]
        for _ in range(12):
            start = int(torch.randint(len(passage) - 1, (), generator=generator))
            size = int(torch.randint(1, 6, (), generator=generator))
            assert log_p(network, ids, passage[start : start + size], ends) <= best + 1e-3


def test_most_places_are_ruled_out_by_their_first_token(answers: list[Completion]) -> None:
    """What was read beside the prompt, against one pass of the longest span from every place."""
    for question, answer in zip(QUESTIONS, answers, strict=False):
        everything = len(question["context"].split()) * 12
        assert answer.stats.rows - answer.stats.prompt_tokens < everything
    assert sum(a.stats.target_forwards for a in answers) < 8 * 5


def test_the_likeliest_span_is_often_another_than_greed_finds(model: Model, answers: list[Completion]) -> None:
    greedy = [model.generate(prompt(q), method="plain", max_tokens=12, stop=["\n"]).text.strip() for q in QUESTIONS[:8]]
    inside = sum(text in q["context"] for text, q in zip(greedy, QUESTIONS, strict=False))
    assert inside < 8, "greedy answers are not all in the passage, exact ones are"
    assert [a.text.strip() for a in answers] != greedy


def test_without_an_end_that_can_be_written_it_says_so(model: Model) -> None:
    with pytest.raises(ValueError, match="ends: 'the end of it' is"):
        model.generate("Some text. Answer:", method=ExactExtract(ends="the end of it"), max_tokens=4)
    with pytest.raises(ValueError, match="longest=0 is not allowed"):
        ExactExtract(longest=0)


def test_an_end_that_is_left_out_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(ExactExtract(), toy_world(3))
    monkeypatch.setattr(ExactExtract, "_ends", lambda self, run: [0])
    with pytest.raises(LawBroken):
        hold(ExactExtract(), toy_world(3))
