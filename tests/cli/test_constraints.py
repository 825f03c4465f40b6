"""Constraints on the command line and on the lines of a job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .conftest import Call

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("form", ["text", "file", "@file"])
def test_a_schema_is_a_text_or_a_file(call: Call, tiny: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    given = {"text": json.dumps(SCHEMA), "file": str(file), "@file": f"@{file}"}[form]
    result = call("generate", "hello", "-m", tiny, "--json-schema", given)
    assert result.code == 0
    assert json.loads(result.out) in ({"a": "x"}, {"a": "y"})


def test_regex_grammar_and_choices(call: Call, tiny: Path) -> None:
    assert re.fullmatch("[0-9]{3}", call("generate", "hello", "-m", tiny, "--regex", "[0-9]{3}").out)
    assert call("generate", "hello", "-m", tiny, "--grammar", 'start: "a" | "b"').out in ("a", "b")
    chosen = call("generate", "hello", "-m", tiny, "--choices", "yes", "--choices", "no", "--method", "plain")
    assert chosen.out in ("yes", "no")


def test_what_cannot_be_is_one_line(call: Call, tiny: Path) -> None:
    for flags, part in ((["--regex", "a(b"], "cannot be followed"), (["--json-schema", "@no.json"], "no.json")):
        result = call("generate", "hello", "-m", "/nowhere", *flags)
        assert result.code == 2
        assert part in result.err
        assert "/nowhere" not in result.err  # told before a model is loaded
    late = call("generate", "hello", "-m", tiny, "--regex", "a{60}", "--max-tokens", 3)
    assert late.code == 2
    assert "within max_tokens=3; raise it" in late.err


def test_the_constraint_of_a_line_replaces_that_of_the_job(call: Call, tiny: Path, out: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    own = [{"json_schema": SCHEMA}, {}, {"choices": ["k"]}, {"regex": "("}]
    lines = [{"id": number, "prompt": "a", **line} for number, line in enumerate(own, start=1)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert call("run", source, "-o", out, "-m", tiny, "--regex", "[0-9]{2}").code == 1
    answers = {a["id"]: a for a in map(json.loads, out.read_text().splitlines())}
    assert json.loads(answers[1]["text"])["a"] in ("x", "y")
    assert re.fullmatch("[0-9]{2}", answers[2]["text"])
    assert answers[3]["text"] == "k"
    assert "cannot be followed" in answers[4]["error"]


def test_a_file_of_legal_outputs_and_one_of_documents(call: Call, tiny: Path, tmp_path: Path) -> None:
    legal, store = tmp_path / "legal.txt", tmp_path / "store.jsonl"
    legal.write_text("ls\nls -l\ngit log\n")
    given = ("generate", "hello", "-m", tiny, "--max-tokens", 30, "--method")
    listed = call(*given, "graph_constrained", "--set", f"file={legal}", "--json")
    assert sorted(c["text"] for c in json.loads(listed.out)["candidates"]) == ["git log", "ls", "ls -l"]
    store.write_text('{"title": "ls", "text": "It lists files."}\n')
    recalled = json.loads(call(*given, "recall_location", "--set", f"documents={store}", "--json").out)
    start, stop = recalled["trace"][0]["characters"]
    assert recalled["text"] == "It lists files."[start:stop]
    for file, flags, part in (
        (legal, ["graph_constrained", "--set", f"file={legal}"], "line 2: "),
        (store, ["recall_location", "--set", f"documents={store}"], "line 2 is not JSON"),
    ):
        file.write_text('{"title": "ls", "text": "It lists files."}\na\t\n')
        wrong = call(*given, *flags)
        assert wrong.code == 2
        assert part in wrong.err
