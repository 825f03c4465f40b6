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


def test_a_variant_may_win_and_is_loaded_again(call: Call, prompts: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    asked = ("tune", "--prompts", prompts, "-o", profile, "--methods", "prompt_lookup", "--variants", "int4,bfloat16")
    told = call(*asked, "--dtype", "float32", "--max-tokens", 6, "--rounds", 1)
    assert told.code == 0
    # plain@int4, prompt_lookup@int4, the same in bfloat16, and prompt_lookup with its variants
    assert "candidates were tried" in told.out
    found = json.loads(profile.read_text())
    found |= {"variant": "int4", "precision": "int4", "method": "plain", "fields": {}}
    profile.write_text(json.dumps(found))
    used = call("generate", "Hello", "--profile", profile, "--max-tokens", 4)
    assert used.code == 0
    assert "note: int4: perplexity" in used.err
    assert "was made for" not in used.err
    other = call("generate", "Hello", "--profile", profile, "--max-tokens", 4, "--dtype", "float32")
    assert "precision int4 instead of float32" in other.err
    profile.write_text(json.dumps(found | {"variant": "int9"}))
    assert "variant 'int9' is unknown" in call("generate", "Hello", "--profile", profile).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nothing.jsonl"], "no suite or file"),
        (["--prompts", "spec", "--methods", "lookahed"], "did you mean lookahead"),
        (["--prompts", "spec", "--rounds", "0"], "--rounds 0"),
        (["--prompts", "spec", "--variants", "int9"], "variant 'int9' is unknown"),
    ],
)
def test_mistakes_are_told(call: Call, arguments: list[str], message: str) -> None:
    result = call("tune", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())
