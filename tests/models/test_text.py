"""Streaming gives whole characters, cuts at stop strings that straddle tokens, and joins to the full decoding."""

from __future__ import annotations

import random

import pytest

from segue.models.text import TextStream
from segue.models.toy import ToyLM


class Bytes:
    """A tokenizer whose tokens are single bytes, like the hard case of a byte-level BPE."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.fixture
def lm() -> ToyLM:
    lm = ToyLM()
    lm.tokenizer = Bytes()
    return lm


TEXT = "naïve 漢字 — 🙂👩‍👩‍👧 Ω end"


def stream(lm: ToyLM, data: bytes, stop: tuple[str, ...] = (), every: int = 1) -> tuple[list[str], str]:
    text = TextStream(lm, list(b"before "), stop)
    pieces = []
    for i, byte in enumerate(data):
        if text.push(byte):
            break
        if i % every == 0:
            pieces.append(text.take())
    text.close()
    pieces.append(text.take_rest())
    return pieces, text.text


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_pieces_join_to_the_text_and_hold_no_half_character(lm: ToyLM, every: int) -> None:
    pieces, text = stream(lm, TEXT.encode(), every=every)
    assert "".join(pieces) == text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_invalid_bytes_come_through_as_replacements(lm: ToyLM) -> None:
    data = b"a\xff\xfe\xf0\x9f\x99b" + b"\x80" * 40 + b"c"
    pieces, text = stream(lm, data)
    assert "".join(pieces) == text
    assert text.startswith("a\ufffd")
    assert text.endswith("c")
    assert text.replace("\ufffd", "") == "abc"


def test_text_that_ends_inside_a_character_is_flushed_at_the_end(lm: ToyLM) -> None:
    pieces, text = stream(lm, "ab漢".encode()[:-1])
    assert text == "ab\ufffd"
    assert "".join(pieces[:-1]) == "ab"


@pytest.mark.parametrize("stop", [("END",), ("D", "END"), ("xEND", "END of"), ("漢字",)])
def test_stop_strings_that_straddle_tokens(lm: ToyLM, stop: tuple[str, ...]) -> None:
    source = "some text ENxENDEN then END of 漢字 it"
    pieces, text = stream(lm, source.encode(), stop)
    end = min(source.find(s) for s in stop if s in source)
    assert text == source[:end]
    assert "".join(pieces) == text


def test_nothing_is_streamed_that_a_stop_string_may_still_cut(lm: ToyLM) -> None:
    text = TextStream(lm, [], ("STOP",))
    seen = []
    for byte in b"aSTSTO!":
        assert not text.push(byte)
        seen.append(text.take())
    assert seen == ["a", "", "", "ST", "", "", "STO!"]


def test_random_texts_with_random_cuts(lm: ToyLM) -> None:
    rng = random.Random(0)
    for _ in range(100):
        source = "".join(rng.choice("abé漢🙂 ") for _ in range(rng.randrange(30)))
        pieces, text = stream(lm, source.encode(), every=rng.randrange(1, 9))
        assert "".join(pieces) == text == source


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        TextStream(ToyLM(), [], ("x",))
