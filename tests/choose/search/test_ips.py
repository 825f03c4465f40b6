"""Isotropic and proximal search: the law holds its scores to the formula; here real dialogues and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import segue
from segue.api import Model
from segue.choose.parts import lookahead
from segue.choose.parts.utterances import utterance_ends
from segue.choose.search import ips as module
from segue.choose.search.ips import IPS
from segue.data import CapabilityError, Completion, DraftTree, Want
from segue.laws.base import LawBroken
from segue.laws.states import States
from segue.laws.targets.ips import hold
from segue.laws.worlds import network_world, toy_world
from segue.models.lm import LM

DIALOGUES = Path(__file__).parents[2] / "data" / "dialogues.jsonl"
TALK = "User: Where is the station?\nAssistant: The station is in the town.\nUser: Is it far?\nAssistant:"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


@pytest.fixture(scope="module")
def dialogues() -> list[str]:
    return [json.loads(line)["prompt"] for line in DIALOGUES.read_text().splitlines()][::2]


def likeness(lm: LM, prompt: str, answer: Completion) -> float:
    """Mean cosine of an answer with the utterances before it, from one forward over all of it."""
    ids = lm.encode(prompt)
    chain = DraftTree.chain([*ids, *answer.tokens])
    (scores,) = lm.forward([(lm.sequence(), chain, Want(logits="none", hidden=(-1,)))])
    states = scores.hidden[-1]
    whole, ends = states[len(ids) :].mean(0, keepdim=True), states[utterance_ends(lm, ids)]
    return float(torch.cosine_similarity(whole, ends).mean())


def test_answers_to_real_dialogues_are_less_like_what_was_said(model: Model, dialogues: list[str]) -> None:
    means = []
    for method in ("plain", IPS(alpha=0.3), IPS(alpha=0.0)):
        answers = model.generate(dialogues, method=method, max_tokens=24, stop=["\nUser:"])
        found = [likeness(model.lm, prompt, answer) for prompt, answer in zip(dialogues, answers, strict=True)]
        means.append(sum(found) / len(found))
    print("mean cosine with the utterances before: greedy {:.3f}, alpha 0.3 {:.3f}, 0 {:.3f}".format(*means))
    assert means[0] > means[1] + 0.01
    assert means[1] > means[2] + 0.01


def test_the_probability_alone_is_greedy_on_dialogues(model: Model, dialogues: list[str]) -> None:
    greedy = model.generate(dialogues[:6], method="plain", max_tokens=16)
    for method in (IPS(alpha=1.0), IPS(m=1), IPS(start=99)):
        assert [a.tokens for a in model.generate(dialogues[:6], method=method, max_tokens=16)] == [
            a.tokens for a in greedy
        ]


def test_without_an_earlier_utterance_nothing_is_kept_away_from(model: Model) -> None:
    answer = model.generate("Once upon a time", method=IPS(show=True), max_tokens=8)
    assert answer.trace[0] == {"utterances": 0}
    assert json.loads(json.dumps(answer.as_dict()))["trace"] == answer.trace
    assert len(answer.trace) == 1 + 8 - 2
    assert all(set(step["iso"]) == {0.0} for step in answer.trace[1:])
    assert all(max(step["prox"]) > 0 for step in answer.trace[1:])


def test_another_end_of_utterances_is_another_answer(model: Model) -> None:
    lines, dots = (model.generate(TALK, method=IPS(eou=mark, show=True), max_tokens=12) for mark in ("\n", "."))
    assert lines.trace[0] == {"utterances": 3}
    assert dots.trace[0] == {"utterances": 1}
    assert lines.trace[1]["iso"] != dots.trace[1]["iso"]
    (end,) = {model.lm.encode(TALK)[i] for i in utterance_ends(model.lm, model.lm.encode(TALK))}
    assert model.generate(TALK, method=IPS(eou=end), max_tokens=12).tokens == lines.tokens
    assert model.generate(TALK, method=IPS(), max_tokens=12).tokens == lines.tokens


def test_a_token_costs_one_forward_of_all_candidates(model: Model) -> None:
    answer = model.generate(TALK, method=IPS(m=6), max_tokens=10, ignore_eos=True)
    assert answer.stats.target_forwards == 1 + 10
    assert answer.stats.rows == len(model.lm.encode(TALK)) + 6 * 10


def test_draws_follow_their_seed(model: Model) -> None:
    method = IPS(drawn=True, alpha=0.5)
    one, two, three = (model.generate(TALK, method=method, max_tokens=16, seed=seed).tokens for seed in (1, 1, 2))
    assert one == two != three
    answers = model.generate(TALK, method=method, n=2, seed=1, max_tokens=16)
    assert [a.tokens for a in answers] == [one, three]


def test_answers_satisfy_their_constraint(model: Model) -> None:
    answer = model.generate(TALK, method=IPS(), max_tokens=12, choices=["Yes, it is far.", "No, it is near."])
    assert answer.text in ("Yes, it is far.", "No, it is near.")


def test_what_was_said_before_an_encoder_decoder_is_its_source() -> None:
    world = network_world("bart")
    source = [7, 8, 9, 5, 11, 12, 5, 14]
    assert torch.allclose(world.lm.source_states(source), States(world).of_source(source), atol=1e-5)
    with pytest.raises(ValueError, match="has no encoder: it cannot read a source of 2 tokens"):
        toy_world(3).lm.source_states([0, 1])


def test_a_backend_without_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = toy_world(3)
    monkeypatch.setattr(world.lm, "lacking", frozenset({"hidden states"}), raising=False)
    with pytest.raises(CapabilityError, match="ips needs hidden states, which toy does not give"):
        Model(world.lm).generate(world.prompts[0], method="ips", max_tokens=3)


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -0.1), ("alpha", 1.5), ("m", 0), ("m", 1000), ("start", -1), ("eou", -3)]
)
def test_bad_fields_name_the_value_and_the_way_out(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        segue.method("ips", **{field: value})


def prompt_as_answer(self: lookahead.Step, rows: slice = slice(None)) -> Any:
    return COSINES(self)


COSINES = lookahead.Step.cosines
WRONG = {
    "near to the prompt as well": (lookahead.Step, "cosines", prompt_as_answer),
    "near to what was said": (module, "_cosines", lambda a, b: -COSINE(a, b)),
    "an axis of length 1": (module, "_cosines", lambda a, b: a.sign() @ (b / b.norm(dim=-1, keepdim=True)).T),
    "the last token for the answer": (module, "_cosines", lambda a, b: COSINE(a - a.mean(0) * 0.5, b)),
    "other ends": (module, "utterance_ends", lambda lm, prompt, mark: [0]),
}
COSINE = module._cosines


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(*WRONG[wrong])
    with pytest.raises(LawBroken):
        hold(IPS(), network_world("llama"))
