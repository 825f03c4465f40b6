"""The form: what it asks for, and the words for what it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from segue.api import Model
from segue.ui.asked import MOST_TOKENS, Form, Wrong, assignments, requests

FORM = Form("Hello there", ("lookahead", "plain"), ("window=4 level=3", ""), 12, 0, 7)


def test_a_form_becomes_two_requests(lm: Model) -> None:
    left, right = requests(FORM, lm)
    assert left.prompt == right.prompt == lm.encode("Hello there")
    assert (left.method.window, left.method.level) == (4, 3)  # type: ignore[attr-defined]
    assert left.settings == right.settings
    assert (left.settings.max_tokens, left.settings.temperature, left.settings.seed) == (12, 0.0, 7)
    assert requests(replace(FORM, seed=None), lm)[0].settings.seed is None


@pytest.mark.parametrize(
    ("change", "words", "side"),
    [
        ({"prompt": "  \n"}, "prompt is empty", None),
        ({"prompt": "x" * 200_001}, "200001 characters", None),
        ({"prompt": "one two " * 3000}, "shorten the prompt", None),
        ({"max_tokens": 0}, "max tokens=0", None),
        ({"max_tokens": MOST_TOKENS + 1}, f"1 to {MOST_TOKENS}", None),
        ({"max_tokens": None}, "max tokens=None", None),
        ({"max_tokens": 2.5}, "max tokens=2.5", None),
        ({"seed": "x"}, "seed='x'", None),
        ({"temperature": -1}, "temperature=-1", None),
        ({"temperature": None}, "temperature=None", None),
        ({"methods": ("plain", "lokahead"), "fields": ("", "")}, "did you mean lookahead", 1),
        ({"fields": ("level=0", "")}, "level=0", 0),
        ({"fields": ("window=two", "")}, "window='two'", 0),
        ({"fields": ("", "window=2")}, "plain has no field 'window'", 1),
        ({"fields": ("", "window")}, "'window' is not NAME=VALUE", 1),
        ({"fields": ("window='2", "")}, "no closing quotation", 0),
    ],
)
def test_what_is_wrong_is_told_in_words(lm: Model, change: dict[str, Any], words: str, side: int | None) -> None:
    with pytest.raises(Wrong) as told:
        requests(replace(FORM, **change), lm)
    assert words in str(told.value)
    assert told.value.side == side


def test_guests_name_no_files_and_fill_no_memory(lm: Model) -> None:
    def guest(method: str, fields: str) -> None:
        requests(replace(FORM, methods=(method, "plain"), fields=(fields, "")), lm, guests=True)

    guest("lookahead", "window=4")
    guest("auto", "allow=lookahead")
    for method, fields in (("draft_model", "draft=/etc"), ("rest", "index=x"), ("sketch_guided", "url=http://x")):
        with pytest.raises(Wrong, match=r"127\.0\.0\.1"):
            guest(method, fields)
    with pytest.raises(Wrong, match="at most 256"):
        guest("lookahead", "window=100000")
    with pytest.raises(Wrong, match="a whole number"):
        guest("lookahead", "window=x")


def test_assignments() -> None:
    assert assignments("a=1\nb='two words'  c=x=y") == {"a": "1", "b": "two words", "c": "x=y"}
    assert assignments("") == {}
