"""`segue tune` and `--profile` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("Once upon a time", "The cat", "One, two")))
    return path


def test_a_profile_is_found_and_used(call: Call, prompts: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    asked = (
        "tune",
        "--prompts",
        prompts,
        "-o",
        profile,
        "--methods",
        "prompt_lookup",
        "--max-tokens",
        6,
        "--rounds",
        1,
    )
    told = call(*asked)
    assert told.code == 0
    assert "best here" in told.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.jsonl", "p.json"]
    found = json.loads(profile.read_text())
    assert found["method"] in ("plain", "prompt_lookup")
    answer = json.loads(call("generate", "Hello", "--profile", profile, "--max-tokens", 4, "--json").out)
    assert answer["stats"]["method"] == found["method"]
    strange = call("generate", "Hello", "--profile", profile, "--max-tokens", 4, "--dtype", "float64")
    assert (
        "precision bfloat16 instead of float64" in strange.err or "precision float32 instead of float64" in strange.err
    )
    both = call("generate", "Hello", "--profile", profile, "--method", "plain")
    assert both.code == 2
    assert "drop it, or drop --method" in " ".join(both.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nothing.jsonl"], "no suite or file"),
        (["--prompts", "spec", "--methods", "lookahed"], "did you mean lookahead"),
        (["--prompts", "spec", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_mistakes_are_told(call: Call, arguments: list[str], message: str) -> None:
    result = call("tune", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())
