"""What is asked, and what is known of the answers."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import segue
from segue.api import Model
from segue.bench.load.questions import METHODS, REGEX, Asking, Known, Mix, askings, known, texts


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model("mini-draft", dtype="float32")


def test_prompts_reach_from_short_to_the_whole_context(model: Model) -> None:
    prompts = texts(model.lm, 16, 32)
    sizes = [len(prompt) for prompt in prompts]
    assert len(prompts) == 16
    assert min(sizes) < 64
    assert max(sizes) == model.lm.longest_prompt(32)


def test_what_is_known_is_what_the_library_says(model: Model) -> None:
    prompt = model.encode("The house on the hill was old, and the house")
    said = known(model, prompt, max_tokens=8, logprobs=2)
    offline = model.generate(prompt, "prompt_lookup", max_tokens=8, logprobs=2)
    assert (said.text, said.tokens) == (offline.text, 8)
    assert said.starts[-1] == said.text
    assert said.gaps == pytest.approx([d.top[0][1] - d.top[1][1] for d in offline.logprobs], abs=1e-3)
    for place in range(8):
        assert said.gap(said.starts[place] + "\x00") == said.gaps[place]
    assert said.gap(said.text + "more") is None


def test_every_kind_is_drawn_and_the_draw_is_repeatable(model: Model) -> None:
    prompts = [model.encode("Once upon a time"), model.encode("def f(x):")]
    found = askings(model, prompts, 8, lambda done, total: None)
    assert [asking.max_tokens for asking in found] == [8, 4]
    assert all(asking.constrained and asking.constrained.text[0].isupper() for asking in found)
    questions = [[Mix(found, METHODS, random.Random(3)).draw() for _ in range(1)] for _ in range(2)]
    assert questions[0] == questions[1]
    mix = Mix(found, METHODS, random.Random(0))
    drawn = [mix.draw() for _ in range(2000)]
    kinds = Counter(question.kind for question in drawn)
    others = {"sampled", "prediction", "constrained", "deadline", "wrong request", "leaves early"}
    assert set(kinds) == {*METHODS, *others}
    assert kinds["leaves early"] / 2000 == pytest.approx(0.05, abs=0.02)
    for question in drawn:
        greedy = question.kind in METHODS or question.kind in ("prediction", "constrained")
        assert (question.known is not None) == greedy
        assert (question.leaves is not None) == (question.kind == "leaves early")
        assert ("regex" in question.body) <= (question.body.get("regex") == REGEX)
        assert not (question.stream and question.statuses != (200,))
    assert {question.stream for question in drawn} == {True, False}


def test_without_a_constrained_answer_none_is_asked_for() -> None:
    asking = Asking([1, 2], 4, Known("ab", 2, ("", "a", "ab"), (1.0, 1.0)), None)
    mix = Mix([asking], ("plain",), random.Random(0))
    assert "constrained" not in {mix.draw().kind for _ in range(500)}


def test_a_longer_token_in_place_of_the_chosen_one_departs_there() -> None:
    """The second token begins like the first one: the texts part after it, the choice was made before."""
    plain = Known(
        "house. He", 3, ("", "house", "house.", "house. He"), (4.0, 0.0, 2.0), ("horse", 'house."', "house. I")
    )
    assert plain.gap('house."\n') == 0.0
    assert plain.gap("house. I") == 2.0
    quoted = Known(
        'house."\nHe', 3, ("", "house.", 'house."', 'house."\nHe'), (0.1, 3.0, 2.0), ('house."', "house. ", "")
    )
    assert quoted.gap('house."\nI') == 2.0
