"""Models without an end of text, and those whose config names one that has no row: GPT-2's, beside others."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers as tf

import segue
from segue.api import Model
from segue.models.transformers.load import wrap


@pytest.fixture(params=[None, 50256])
def endless(request: pytest.FixtureRequest) -> Model:
    tokenizer = segue.model("mini-draft").lm.tokenizer
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = tf.GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **sizes)
    torch.manual_seed(0)
    network = tf.GPT2LMHeadModel(config).eval()
    network.generation_config.eos_token_id = request.param
    return Model(wrap(network, tokenizer, name="endless"))


def test_an_end_without_a_row_is_none(endless: Model) -> None:
    assert endless.lm.eos_ids == frozenset()
    assert endless.generate("The house", max_tokens=5, ignore_eos=False).finish_reason == "length"


@pytest.mark.parametrize("method", ["plain", "prompt_lookup", "beam"])
def test_a_grammar_ends_the_text(endless: Model, method: str) -> None:
    found = endless.generate("The house", method, regex="[0-9]{4}", max_tokens=8)
    assert re.fullmatch("[0-9]{4}", found.text)
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("asked", [{}, {"regex": "a+"}, {"choices": ["a", "b"]}])
def test_a_stop_token_without_a_row_is_named(endless: Model, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="token id 70000 is outside the vocabulary"):
        endless.generate("The house", "plain", stop_tokens=[70000], max_tokens=4, **asked)


def test_bad_words_and_least_lengths_need_no_end(endless: Model) -> None:
    free = endless.generate("The house", "plain", max_tokens=5)
    other = endless.generate("The house", "plain", max_tokens=5, min_tokens=3, bad_words=[free.text[:4]])
    assert len(other.tokens) == 5
