"""Judged suites hold what they promise, and a user's file is read with its faults named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.bench.cases import Case, cases, judged
from segue.bench.judge import fault
from segue.laws.worlds import network_world
from tests.cli.conftest import make_model


def written(folder: Path, *records: Any) -> str:
    path = folder / "own.jsonl"
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return str(path)


def test_the_constrained_suite_has_36_prompts_of_five_kinds() -> None:
    found = cases("constrained")
    assert (found.name, found.sort) == ("constrained", "constrained")
    kinds = ("json_schema", "regex", "choices", "grammar", "extraction")
    assert Counter(case.kind for case in found.cases) == dict.fromkeys(kinds, 36)
    assert len({case.prompt for case in found.cases}) == 180
    assert Counter(case.kind for case in cases("constrained", 10).cases) == dict.fromkeys(kinds, 2)


def test_every_right_answer_is_valid() -> None:
    counted = 0
    for case in cases("constrained").cases:
        for reference in case.references:
            text = f" {reference}" if case.kind == "choices" else reference
            assert fault(case, text) is None, case
            counted += 1
    assert counted >= 4 * 36


def test_a_file_of_its_own_is_judged_by_what_its_lines_have(tmp_path: Path) -> None:
    translation = written(tmp_path, {"prompt": "Guten Tag", "reference": "Good day", "document": "x"})
    assert judged(translation)
    (case,) = cases(translation).cases
    assert case == Case("translation", "Guten Tag", "x", ("Good day",))
    constrained = written(tmp_path, {"prompt": "a", "regex": "a"}, "", {"prompt": "b", "choices": ["b"], "kind": "c"})
    assert judged(constrained)
    found = cases(constrained)
    assert (found.sort, [case.kind for case in found.cases]) == ("constrained", ["regex", "c"])
    assert [judged(name) for name in ("translation", "constrained", "spec", "nowhere.jsonl")] == [
        True,
        True,
        False,
        False,
    ]
    assert not judged(written(tmp_path, {"prompt": "a"}))
    assert not judged(written(tmp_path, "no JSON"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no prompts"),
        (["[1]"], "line 1 is not a JSON object"),
        ([{"prompt": "a", "regex": "a"}, "{"], "line 2 is not a JSON object"),
        ([{"prompt": "", "regex": "a"}], 'line 1 has no "prompt"'),
        ([{"prompt": "a", "regex": "a", "document": 3}], 'line 1 has no "document"'),
        ([{"prompt": "a", "regex": "a"}, {"prompt": "a"}], "line 2 has no constraint and no"),
        ([{"prompt": "a", "regex": "a", "choices": ["a"]}], "line 1 has regex and choices"),
        ([{"prompt": "a", "regex": "a", "reference": "a"}], 'line 1 has regex and a "reference"'),
        ([{"prompt": "a", "regex": "a"}, {"prompt": "b", "reference": "c"}], r"reference translation \(line 2\)"),
        ([{"prompt": "a", "regex": "a("}], "line 1: regex="),
        ([{"prompt": "a", "regex": "\\p{Letter}"}], r"line 1: bad escape \\p"),
        ([{"prompt": "a", "json_schema": {"properties": {"b": {"pattern": "\\p{L}"}}}}], r"line 1: bad escape \\p"),
        ([{"prompt": "a", "json_schema": {"type": "strange"}}], "line 1: json_schema="),
        ([{"prompt": "a", "grammar": "start"}], "line 1: grammar="),
        ([{"prompt": "a", "choices": [""]}], "line 1: choices="),
        ([{"prompt": "a", "passage": ["a"]}], "line 1: a passage is a text"),
        ([{"prompt": "a", "regex": "a", "references": "a"}], 'line 1: "references" is not a list'),
    ],
)
def test_faults_of_a_file_are_named_by_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases(written(tmp_path, *lines))


def test_an_unknown_suite_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'translatoin'.*translation, constrained"):
        cases("translatoin")


def test_encoders_read_the_document_and_decoders_the_prompt() -> None:
    case = Case("translation", "German: Hallo\nEnglish:", "Hallo", ("Hello",))
    assert case.read_by(network_world("t5").lm) == "Hallo"
    assert case.read_by(network_world("llama").lm) == case.prompt
    assert Case("regex", "a").read_by(network_world("t5").lm) == "a"


def test_a_part_of_a_passage_is_of_whole_words_whatever_its_tokens(tmp_path: Path) -> None:
    """Of a byte model every character here is several tokens, and a part of the tokens may be half a character."""
    case = Case("extraction", "a", constraint={"passage": "ʰé ǂxß — 1967: 中文字 über"})
    model = segue.model(str(make_model(tmp_path / "tiny")))
    given = []
    for number in range(12):
        for method in ("plain", "beam"):
            given.append(model.generate(f"{number}", method, max_tokens=40, **case.settings()).text)
            assert fault(case, given[-1]) is None
    words = {"ʰé", "ǂxß", "—", "1967", ":", "1967:", "中文字", "über"}
    assert {word for text in given for word in text.split()} <= words | {"中", "文", "字"}
    assert len(set(given)) > 1
