"""Long forced texts: what cannot end in time is given up at once, what can is written as the tokenizer writes it."""

from __future__ import annotations

import json
import random
import re
import time

import pytest

import segue
from segue.api import make_settings
from segue.data import ConstraintError
from segue.models import vocabulary
from segue.models.constraint import constraint
from segue.models.grammar import grammar


@pytest.mark.parametrize("text", ["c{100000}", "[xy]c{3000}", "é{30000}"])
def test_a_forced_text_longer_than_the_answer_is_given_up_at_once(text: str) -> None:
    """On the engine's thread: when all of it was cut into tokens at every step of a search, the first took 28 s."""
    model = segue.model("mini-draft")
    assert constraint(make_settings(regex=text, max_tokens=12), model.lm, 12) is not None  # compiled, beside the engine
    begun = time.thread_time()
    with pytest.raises(ConstraintError, match="no text that satisfies it was found within max_tokens=12"):
        model.generate("The house", "plain", regex=text, max_tokens=12)
    assert time.thread_time() - begun < 2


def test_a_way_out_over_a_forced_text_that_fits_is_taken() -> None:
    """b{12} fits into the eight tokens that are left once the model has written a few a."""
    model = segue.model("mini-draft")
    found = model.generate("The house", "plain", regex="a*b{12}", max_tokens=16)
    assert re.fullmatch("a*b{12}", found.text)
    assert found.finish_reason == "stop"


def test_a_long_forced_text_is_written_in_the_tokens_of_the_whole() -> None:
    model = segue.model("mini-draft")
    words = ["the", "quick", "brown", "fox", "over", "lazy", "café", "naïvely", "€", "日本", "runs", "123"]
    text = "x" + " ".join(random.Random(5).choices(words, k=500))
    assert len(text.encode()) > 2 * vocabulary.HEAD
    whole = model.generate("The house", "plain", choices=[text], max_tokens=1900)
    assert whole.text == text
    assert json.loads(model.generate("The house", "plain", json_schema={"const": text}, max_tokens=1900).text) == text
    automaton = grammar(model.lm, "regex", re.escape(text), model.lm.eos_ids)
    state: tuple[int, ...] = ()
    for token in whole.tokens[:40]:
        assert automaton.allowed(state).nonzero().flatten().tolist() == [token]
        state = (*state, token)


def test_the_head_of_a_text_ends_between_characters() -> None:
    for shift in range(4):
        head = vocabulary._head(b"x" * shift + "日本".encode() * 1000)
        assert vocabulary.HEAD - 3 < len(head) <= vocabulary.HEAD
        head.decode()
    assert vocabulary._head(b"short") == b"short"
