"""`segue bench --suite load` from the outside: a server that is right, one that is not, and what is refused."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from segue.bench.load import questions
from segue.bench.load.server import started

from .conftest import Call

SHORT = ("--limit", 4, "--max-tokens", 8, "--rounds", 1, "--minutes", 0.03, "--clients", 6)


def test_a_load_finds_no_fault_and_tells_all(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = call("bench", "--suite", "load", "-m", "mini-draft", *SHORT, "-o", out, "--json")
    assert told.code == 0, told.err
    data = json.loads(told.out)
    assert data["faults"] == []
    assert data["answers"]["checked"] > 60
    assert data["answers"]["equal"] + data["answers"]["near_ties"] == data["answers"]["checked"]
    assert [(way["method"], way["stream"]) for way in data["scaling"]] == [
        ("plain", False), ("plain", True), ("auto", False), ("auto", True),
    ]  # fmt: skip
    for way in data["scaling"]:
        (one,), (many,) = way["one"], way["many"]
        assert many["tokens"] == 16 * one["tokens"] == 16 * 4 * 8
        assert way["ratio"][0] == pytest.approx(many["tokens_per_second"] / one["tokens_per_second"], rel=0.01)
        assert (one["first_token_seconds"] is not None) == way["stream"]
        assert many["prefix_hits"] == 0
    plain = data["scaling"][0]
    assert plain["one"][0]["tokens_per_forward"] == 1.0
    assert plain["many"][0]["tokens_per_forward"] > 4
    assert data["memory"]["end"]["kv_bytes"] == 0 < data["memory"]["peak"]["kv_bytes"]
    assert json.loads((out / "load.json").read_text())["answers"] == data["answers"]
    html = (out / "load.html").read_text()
    HTMLParser().feed(html)
    assert html.count("<svg") == 4
    assert not re.findall(r"(?:src|href)=[\"']https?://", html)
    assert "no fault" in html


def test_an_answer_that_is_not_plain_decodings_fails_the_command(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was started by somebody else, held to answers that it will not give."""
    known = questions.known
    monkeypatch.setattr(
        questions,
        "known",
        lambda model, prompt, **settings: known(model, [*prompt[:-1], prompt[-1] ^ 1], **settings),
    )
    with started("mini-draft", ["--dtype", "float32"]) as (url, _):
        told = call("bench", "--suite", "load", "-m", "mini-draft", *SHORT, "--methods", "plain", "--url", url)
    assert told.code == 1
    assert "are not those of plain decoding" in told.err
    assert "faults in" in told.out
    assert "memory of the server" not in told.out  # nothing is known of a process that somebody else started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "plian"], "did you mean plain"),
        (["--methods", "beam"], "need not be plain decoding's"),
        (["--clients", "0"], "--clients 0 is not allowed"),
        (["--minutes", "0"], "--minutes 0 is not allowed"),
        (["--limit", "0"], "--limit 0 is not allowed"),
        (["--peers", "llama.cpp"], "--peers has no meaning"),
        (["--url", "http://127.0.0.1:9"], "no server answers there"),
    ],
)
def test_mistakes_are_told_before_anything_runs(call: Call, arguments: list[str], message: str) -> None:
    assert message in call("bench", "--suite", "load", *arguments).error()


def test_an_address_is_for_a_load(call: Call) -> None:
    assert "--url is for --suite load" in call("bench", "--suite", "spec", "--url", "http://127.0.0.1:9").error()
