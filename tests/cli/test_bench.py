"""`segue bench` from the outside: the table, the files, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.cli.conftest import Call


def command(prompts: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "segue", "bench", "--suite", str(prompts), "-o", str(out), "--methods", "plain,auto"),
        *("--max-tokens", "8", *more),
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Once upon a time", "kind": "tale"}\n{"prompt": "def f(x):", "kind": "code"}\n')
    return path


def test_a_table_a_json_and_a_report_that_needs_no_network(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(command(prompts, out, "--rounds", "1"), capture_output=True, text=True, check=True)
    for name in ("transformers", "plain", "auto", "over plain", "acceptance"):
        assert name in done.stdout
    data = json.loads((out / "own.json").read_text())
    names = [r["name"] for r in data["records"]]
    assert names == ["transformers", "transformers prompt lookup", "transformers assistant", "plain", "auto"]
    plain = data["records"][3]
    assert plain["tokens_per_forward"] == 1.0
    assert set(plain["by_kind"]) == {"tale", "code"}
    assert data["cost"]["rows"][0] == 1
    html = (out / "own.html").read_text()
    HTMLParser().feed(html)
    assert html.count("<svg") == 4
    assert not re.findall(r"(?:src|href)=[\"']https?://", html)
    assert "times transformers greedy" in html


def test_a_method_runs_on_another_form_of_the_model(call: Call, prompts: Path) -> None:
    methods = "plain,plain@int4,prompt_lookup@int4:draft_tokens=3"
    told = call("bench", "--suite", prompts, "--methods", methods, "--max-tokens", 8, "--rounds", 1, "--json")
    records = {r["name"]: r for r in json.loads(told.out)["records"]}
    four, lookup = records["plain@int4"], records["prompt_lookup@int4:draft_tokens=3"]
    assert four["ratio_to_plain"] == [1.0, 1.0, 1.0]  # of its own form
    assert lookup["ratio_to_plain"] != lookup["ratio"]
    assert four["tokens_per_forward"] == 1.0


def test_a_killed_measurement_goes_on(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal = out / "own.journal.jsonl"
    first = subprocess.Popen(command(prompts, out, "--rounds", "200"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not journal.is_file() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert journal.read_bytes().count(b"\n") >= 3
    other = subprocess.run(command(prompts, out, "--rounds", "1"), capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "another contest" in " ".join(other.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--suite", "sepc"],
            "the suites are spec, code, translation, long, adversarial, constrained,",
        ),
        (["--methods", "plian"], "did you mean plain"),
        (["--methods", "lookahead:window"], "is not FIELD=VALUE"),
        (["--methods", "lookahead:windw=3"], "did you mean window"),
        (["--methods", "plain@int9"], "variant 'int9' is unknown"),
        (["--peers", "vllm"], "--peers vllm"),
        (["--rounds", "0"], "--rounds 0 is not allowed"),
        (["--max-tokens", "0"], "max_tokens=0 is not allowed"),
        (["--limit", "0"], "--limit 0 is not allowed"),
    ],
)
def test_mistakes_are_told_before_anything_runs(call: Call, arguments: list[str], message: str) -> None:
    result = call("bench", *arguments)
    assert result.code == 2
    assert message.replace("vllm", "'vllm'") in " ".join(result.err.split())
