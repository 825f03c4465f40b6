"""Where utterances end in a prompt: by hand, on the embedded model's tokens and on chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.parts.utterances import check_mark, utterance_ends
from segue.laws.worlds import toy_world

DIALOGUES = Path(__file__).parents[2] / "data" / "dialogues.jsonl"
TALK = "User: Hello there.\nAssistant: Hi! How are you?\nUser: Fine.\nAssistant:"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def said(model: Model, prompt: list[int], ends: list[int]) -> list[str]:
    """What stands between the ends, the ends with it."""
    starts = [0, *(end + 1 for end in ends)]
    return [model.lm.decode(prompt[a : b + 1]) for a, b in zip(starts, ends, strict=False)]


def test_lines_end_utterances(model: Model) -> None:
    prompt = model.lm.encode(TALK)
    found = said(model, prompt, utterance_ends(model.lm, prompt))
    assert [text.strip() for text in found] == TALK.splitlines()[:-1]


def test_real_dialogues_have_as_many_ends_as_turns(model: Model) -> None:
    for line in DIALOGUES.read_text().splitlines():
        text = json.loads(line)["prompt"]
        ends = utterance_ends(model.lm, model.lm.encode(text))
        assert len(ends) == text.count("\n") >= 3


def test_empty_lines_are_no_utterances(model: Model) -> None:
    prompt = model.lm.encode("\n\nUser: Hello there.\n\n\nAssistant: Hi!\n \nUser: Fine.")
    assert len(utterance_ends(model.lm, prompt)) == 2


@pytest.mark.parametrize("mark", ["<END>", " // ", "\nUser:", "|"])
def test_any_text_may_end_them(model: Model, mark: str) -> None:
    """Also where it is spread over several tokens."""
    prompt = model.lm.encode(f"Hello there.{mark}Hi! How are you?{mark}Fine, and")
    ends = utterance_ends(model.lm, prompt, mark)
    assert len(ends) == 2
    front, second = said(model, prompt, ends)
    assert front.startswith(f"Hello there.{mark}")
    assert "How" not in front
    assert mark in second
    assert "Fine, and" not in second


def test_tokens_end_them(model: Model) -> None:
    prompt = [40, 41, 7, 42, 7, 7, 43, 9, 44]
    assert utterance_ends(model.lm, prompt, 7) == [2, 4]
    assert utterance_ends(model.lm, prompt, (7, 9)) == [2, 4, 7]
    assert utterance_ends(model.lm, prompt, [8]) == []
    assert utterance_ends(toy_world(3).lm, [2, 0, 1, 2, 0], (2,)) == [3]


def test_end_of_turn_tokens_come_before_lines(model: Model) -> None:
    (end,) = model.lm.eos_ids
    one, two = (model.lm.encode(text) for text in ("user\nHello there.", "assistant\nHi!\n"))
    assert utterance_ends(model.lm, [*one, end, *two, end, 40]) == [len(one), len(one) + len(two) + 1]
    # One in front, as some models begin with, ends nothing.
    prompt = [end, *model.lm.encode(TALK)]
    assert len(utterance_ends(model.lm, prompt)) == 3
    world = toy_world(3, 2)
    assert utterance_ends(world.lm, [0, 1, 2, 0]) == [2]
    assert utterance_ends(toy_world(3).lm, [0, 1, 2, 0]) == []


@pytest.mark.parametrize("mark", [(), -1, (1, -2), True, 1.5, None, ("a",)])
def test_what_is_no_mark_is_refused(mark: Any) -> None:
    with pytest.raises(ValueError, match=r"eou=.* is not allowed: the text that ends an utterance"):
        check_mark(mark)


def test_marks_must_fit_the_model(model: Model) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        utterance_ends(model.lm, [1, 2], 10**6)
    with pytest.raises(ValueError, match=r"'\\n' is text, and toy-.* has no tokenizer: give token ids"):
        utterance_ends(toy_world(3).lm, [0, 1], "\n")
