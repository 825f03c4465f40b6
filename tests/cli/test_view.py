from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.api import Model

from .conftest import Call


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def test_the_data_fit_what_the_library_generates(call: Call, tiny: Path, lm: Model) -> None:
    for flags in ([], ["--mode", "jacobi"], ["--mode", "gauss_seidel", "--block", 6], ["--set", "guess=last"]):
        told = json.loads(call("view", "jacobi", "Hello", "-m", tiny, "--max-tokens", 12, *flags, "--json").out)
        answer = lm.generate("Hello", "plain", max_tokens=12)
        assert (told["tokens"], told["text"]) == (answer.tokens, answer.text)
        assert told["prompt"] == "Hello"
        assert told["settings"]["max_tokens"] == 12
        for name, value in zip(flags[::2], flags[1::2], strict=True):
            if name != "--set":
                assert told["settings"][str(name).removeprefix("--")] == value


def test_the_page_is_written_and_stdout_stays_empty(call: Call, tiny: Path, target: Path) -> None:
    result = call("view", "jacobi", "Hello <b>&", "-m", tiny, "--max-tokens", 8, "-o", target)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"{target}: 8 tokens in ")
    html = target.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "Hello &lt;b&gt;&amp;" in html


def test_the_prompt_may_come_from_stdin(call: Call, tiny: Path) -> None:
    told = json.loads(call("view", "jacobi", "-m", tiny, "--max-tokens", 2, "--json", stdin=b"Hello\n").out)
    assert told["prompt"] == "Hello"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "newton"], "one of hybrid, gauss_seidel, jacobi"),
        (["--block", 0], "block=0 is not allowed: at least 1"),
        (["--block", 2, "--set", "block=3"], "are two values: give one of them"),
        (["--set", "blok=3"], "did you mean block?"),
        (["--max-tokens", 0], "max_tokens=0 is not allowed"),
        (["-o", "/nowhere/x.html"], "there is no folder /nowhere"),
        (["-o", "/tmp"], "/tmp is a folder: name a file"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_before_a_model_is_loaded(call: Call, flags: list[Any], message: str) -> None:
    assert message in call("view", "jacobi", "Hello", "-m", "/no/such/model", *flags).error()


def test_a_lattice_is_shown_as_the_library_finds_it(call: Call, tiny: Path, lm: Model) -> None:
    flags = ["--merge", "rcb", "--calls", 40, "--set", "ngram=2", "--max-tokens", 8, "--reference", "Hello"]
    told = json.loads(call("view", "lattice", "Hello", "-m", tiny, *flags, "--json").out)
    method = segue.method("lattice", merge="rcb", calls=40, ngram=2)
    answer = lm.generate("Hello", method=method, max_tokens=8)
    assert answer.candidates is not None
    assert [c["tokens"] for c in told["candidates"]] == [c.tokens for c in answer.candidates]
    assert (told["texts"], told["merges"]) == (answer.trace[0]["texts"], answer.trace[0]["merges"])
    assert (told["settings"]["merge"], told["settings"]["calls"], told["settings"]["ngram"]) == ("rcb", 40, 2)
    assert told["reference"]["text"] == "Hello"


def test_the_page_of_a_lattice_is_written(call: Call, tiny: Path, target: Path) -> None:
    flags = ["-m", tiny, "--max-tokens", 6, "--calls", 20, "-o", target]
    result = call("view", "lattice", "Hello <b>&", *flags)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"{target}: ")
    html = target.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "Hello &lt;b&gt;&amp;" in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--merge", "all"], "merge='all' is not allowed: zip, rcb, none"),
        (["--calls", 0], "calls=0 is not allowed: at least 1"),
        (["--calls", 9, "--set", "calls=3"], "are two values: give one of them"),
        (["-o", "/nowhere/x.html"], "there is no folder /nowhere"),
    ],
)
def test_what_is_wrong_with_a_lattice_is_told_before_a_model_is_loaded(
    call: Call, flags: list[Any], message: str
) -> None:
    assert message in call("view", "lattice", "Hello", "-m", "/no/such/model", *flags).error()


def test_a_missing_jinja2_is_named(call: Call, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("segue.cli.view.find_spec", lambda name: None if name == "jinja2" else found(name))
    assert "pip install 'segue[bench]'" in call("view", "jacobi", "Hello", "-o", target).error()


def test_without_a_name_the_pictures_are_listed(call: Call) -> None:
    result = call("view")
    assert result.code == 0
    assert "jacobi" in result.out
    assert "lattice" in result.out
    assert "'jacobi'" in call("view", "jacob").error()
