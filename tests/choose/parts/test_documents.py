"""Where tokens stand in the text of a document, with and without a tokenizer that knows it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import segue
from segue.choose.parts.documents import Document, stored
from segue.models.lm import LM

TEXT = "Grüße — 東京 🗼🗼 naïve\nfin"


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "store.jsonl"
    file.write_text(json.dumps({"title": " Tōkyō ", "text": TEXT}) + "\n")
    return str(file)


@pytest.fixture
def lm() -> LM:
    return segue.model(dtype="float32").lm


def slow(lm: LM) -> Any:
    """The same model, whose tokenizer tells no offsets."""
    tokenizer = lm.tokenizer

    class Slow:
        is_fast = False

        def __call__(self, text: str, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return tokenizer(text, **options)

        def decode(self, *args: Any, **options: Any) -> str:
            return str(tokenizer.decode(*args, **options))

    lm.tokenizer = Slow()
    return lm


@pytest.mark.parametrize("fast", [True, False])
def test_whole_characters_of_every_slice_are_what_its_tokens_say(lm: LM, path: str, fast: bool) -> None:
    (document,) = stored(lm if fast else slow(lm), path)
    assert document.title == "Tōkyō"
    assert {lm.decode(ids) for ids in document.titles} == {"Tōkyō", " Tōkyō"}
    count = len(document.ids)
    assert count > len(TEXT.split())
    moved = 0
    for start in range(count):
        for stop in range(start + 1, count + 1):
            first, last = document.whole(start, stop)
            moved += (first, last) != (start, stop)
            a, b = document.characters(first, last)
            said = lm.decode(document.ids[first:last])
            if "\ufffd" not in said:
                assert said == TEXT[a:b]
            else:  # a piece of one character alone: nothing smaller is whole
                assert b - a <= 1
    assert moved > 10


def test_a_store_is_spelled_once_and_again_where_the_file_has_changed(lm: LM, path: str) -> None:
    assert stored(lm, path) is stored(lm, path)
    Path(path).write_text(json.dumps({"title": "b", "text": "other"}) + "\n")
    (document,) = stored(lm, path)
    assert document.text == "other"


def test_the_first_place_of_a_run() -> None:
    document = Document("", "", (), (1, 1, 2, 1, 1, 2, 3))
    assert document.find((1, 2)) == 1
    assert document.find((2, 3)) == 5
    assert document.find((3, 1)) is None
    assert SimpleNamespace(**vars(document)).offsets == ()
