"""Suites are real prompts of the kinds they promise, and a user's file is read with its faults named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from segue.bench.suites import FOLDER, NAMES, suite


def test_every_suite_is_there() -> None:
    for name in NAMES:
        found = suite(name)
        assert len(found.prompts) == len(found.kinds) == len(set(found.prompts))
    assert min(Counter(suite("spec").kinds).values()) >= 20
    assert len(Counter(suite("spec").kinds)) == 6
    assert len(suite("code").prompts) >= 40
    assert len(suite("translation").prompts) == 200
    assert max(len(p) for p in suite("long").prompts) > 25_000


def test_translations_have_a_source_for_encoders_and_a_reference() -> None:
    records = [json.loads(line) for line in (FOLDER / "translation.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        assert record["prompt"] == f"German: {record['document']}\nEnglish:"
        assert record["reference"].strip()
    assert len({record["document"] for record in records}) == len(records) == 200


def test_random_words_are_the_same_everywhere_and_sampled() -> None:
    found = suite("adversarial")
    assert found == suite("adversarial")
    assert found.temperature == 1.0
    words = [w for p in found.prompts for w in p.split()]
    assert len(set(words)) > 0.5 * len(words)


def test_a_limit_keeps_every_kind() -> None:
    found = suite("spec", 12)
    assert Counter(found.kinds) == dict.fromkeys(Counter(suite("spec").kinds), 2)
    with pytest.raises(ValueError, match="--limit 0"):
        suite("spec", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("{", "line 1 is not a JSON object"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"prompt": "x"}\n{"prompt": ""}', "line 2 has no"),
        ('{"prompt": 3}', "line 1 has no"),
    ],
)
def test_faults_of_a_file_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        suite(str(path))


def test_an_unknown_name_lists_the_suites() -> None:
    with pytest.raises(ValueError, match=r"'sped'.*spec, code"):
        suite("sped")


def test_an_own_file_may_name_kinds(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "kind": "x"}\n\n{"text": "b"}\n')
    assert (suite(str(path)).prompts, suite(str(path)).kinds) == (["a", "b"], ["x", "prompts"])
