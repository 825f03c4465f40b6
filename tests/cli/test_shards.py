"""What `segue run` reads: shards of lines and of rows, numbered through."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from segue.api import Model
from segue.cli.shards import Shards

from .conftest import Call, records, write_lines


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def test_lines_are_numbered_through_all_shards(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.parquet", [{"prompt": "third"}, {"prompt": "fourth"}])
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "first"}\n\n')
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "fifth"}')  # without an end
    (tmp_path / "notes.txt").write_text("not read")
    shards = Shards(tmp_path)
    for _ in range(2):  # it is read twice
        found = [(number, json.loads(line)["prompt"], shards.place(number)) for number, line in shards]
        assert found == [
            (1, "first", "line 1 of a.jsonl"),
            (3, "third", "line 1 of b.parquet"),
            (4, "fourth", "line 2 of b.parquet"),
            (5, "fifth", "line 1 of c.jsonl"),
        ]
    assert shards.holds(tmp_path / "a.jsonl")
    assert not shards.holds(tmp_path / "notes.txt")
    assert not shards.holds(tmp_path / "none")


def test_a_row_is_the_line_that_says_the_same(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "prompt": None,  # a key that only other rows have
        "messages": [{"role": "user", "content": "Grüße 你好", "name": None}],
        "max_tokens": 3,
        "temperature": 0.5,
        "stop": ["x", "y"],
        "logit_bias": {"70": 1.5},
        "when": datetime.date(2026, 11, 29),
        "raw": b"\xff",
    }
    schema = pyarrow.schema([
        ("id", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("messages", pyarrow.list_(pyarrow.struct([(n, pyarrow.string()) for n in ("role", "content", "name")]))),
        ("max_tokens", pyarrow.int32()),
        ("temperature", pyarrow.float64()),
        ("stop", pyarrow.list_(pyarrow.string())),
        ("logit_bias", pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        ("when", pyarrow.date32()),
        ("raw", pyarrow.binary()),
    ])  # fmt: skip
    write_rows(tmp_path / "in.parquet", [row], schema)
    ((number, line),) = Shards(tmp_path / "in.parquet")
    assert number == 1
    assert json.loads(line) == {
        "id": "a",
        "messages": [{"role": "user", "content": "Grüße 你好"}],
        "max_tokens": 3,
        "temperature": 0.5,
        "stop": ["x", "y"],
        "logit_bias": {"70": 1.5},
        "when": "2026-11-29",
        "raw": "\udcff",
    }


def test_a_folder_is_answered_like_its_lines(call: Call, tiny: Path, lm: Model, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{"prompt": "one"}, b"oops"])
    write_rows(folder / "b.parquet", [{"id": "x", "prompt": "two", "max_tokens": 2}, {"id": "y", "prompt": "three"}])
    result = call("run", folder, "-o", out, "-m", tiny, "--max-tokens", 4)
    found = records(out)
    assert result.code == 1
    assert {key: record.get("tokens") for key, record in found.items()} == {
        1: lm.generate("one", max_tokens=4).tokens,
        (2,): None,
        "x": lm.generate("two", max_tokens=2).tokens,
        "y": lm.generate("three", max_tokens=4).tokens,
    }
    assert found[(2,)]["error"].startswith("line 2 of a.jsonl is not JSON")


def test_an_id_of_two_shards_is_told_with_both_places(call: Call, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "b.parquet", [{"id": "q", "prompt": "x"}, {"id": "p", "prompt": "x"}])
    write_lines(folder / "a.jsonl", [{"id": "p", "prompt": "x"}])
    told = call("run", folder, "-o", out).error()
    assert "id 'p' is on line 1 of a.jsonl and on line 2 of b.parquet" in told


def test_what_is_no_input(call: Call, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "has no files to answer: none ends in .jsonl or .parquet" in call("run", folder, "-o", out).error()
    (folder / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet is not a Parquet file" in call("run", folder, "-o", out).error()
    write_lines(folder / "a.jsonl", [{"prompt": "x"}])
    (folder / "a.parquet").unlink()
    assert "is the input" in call("run", folder, "-o", folder / "a.jsonl").error()
    # Not there yet: the second start, which continues, would read the answers as prompts.
    assert "is the input" in call("run", folder, "-o", folder / "answers.jsonl").error()
    (folder / "c.jsonl").mkdir()
    assert "c.jsonl is not a regular file" in call("run", folder, "-o", out).error()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert 'pip install "segue[ray]"' in call("run", tmp_path / "a.parquet", "-o", out).error()
    assert not out.exists()
