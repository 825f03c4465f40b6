"""`segue daemon` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "human.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun. " * 6)
    return path


def test_an_energy_is_fitted_and_used(call: Call, tiny: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    words = ("daemon", "fit", texts, "-o", out, "-m", tiny, "--metrics", "tr8,information")
    told = call(*words, "--prefix", "8", "--length", "16", "--samples", "2", "--json")
    assert told.code == 0, told
    summary = json.loads(told.out)
    assert summary["metrics"] == ["tr8", "information"]
    assert summary["windows"] == len(texts.read_text()) // 24  # its tokens are bytes
    assert summary["texts"] == [str(texts)]
    assert json.loads(out.read_text())["mu"] == summary["mu"]
    assert "is there already: --force replaces it" in call(*words).error()
    again = call(*words, "--prefix", "8", "--length", "16", "--samples", "2", "--force")
    assert again.out.startswith(f"{out}: 2 metrics, {summary['windows']} windows\n")
    told = call("generate", "abc", "-m", tiny, "--method", "daemon", "--set", f"energy={out}", "--set", "samples=3",
                "--max-tokens", "5", "--json")  # fmt: skip
    answer = json.loads(told.out)
    assert sum(c["score"] for c in answer["candidates"]) == pytest.approx(1)


def test_users_errors_are_one_line(call: Call, tiny: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    assert "did you mean tr8" in call("daemon", "fit", texts, "-o", out, "--metrics", "tr9").error()
    assert "--ridge -1.0 is not allowed" in call("daemon", "fit", texts, "-o", out, "--ridge", "-1").error()
    assert "--temperature 0.0 is not" in call("daemon", "fit", texts, "-o", out, "--temperature", "0").error()
    assert "there is no folder" in call("daemon", "fit", texts, "-o", tmp_path / "no" / "e.json").error()
    short = tmp_path / "short.txt"
    short.write_text("Hello.")
    assert "0 windows of 32 + 64 tokens" in call("daemon", "fit", short, "-o", out, "-m", tiny).error()
    assert not out.exists()
