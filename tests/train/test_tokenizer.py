from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.models.build import END_OF_TEXT, PADDING
from segue.train.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["Häuser stehen in 1984 Reihen.", "def f(x):\n    return x\n"] * 20, 320)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["Привет, мир", "今日は 良い", "naïve — “ok”", "👩‍🚀\t\r\n  x", "مرحبا", ""])
def test_languages_come_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_digits_stand_alone() -> None:
    assert TOKENIZER.encode("1984").tokens == ["1", "9", "8", "4"]


def test_special_tokens_come_first() -> None:
    assert [TOKENIZER.token_to_id(token) for token in (END_OF_TEXT, PADDING)] == [0, 1]


def test_vocabulary_too_small() -> None:
    with pytest.raises(ValueError, match="vocabulary 100"):
        train_tokenizer(["a"], 100)
