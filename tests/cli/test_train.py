from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import segue.train
from segue.train import RECIPES

from .conftest import Call


def test_recipes_are_listed(call: Call) -> None:
    assert [row["name"] for row in json.loads(call("train", "--json").out)] == list(RECIPES)
    assert "mini-draft: " in call("train").out


def test_options_reach_the_training(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(recipe: str, *, say: Any, **options: Any) -> dict[str, Any]:
        seen.update(options, recipe=recipe)
        say("step 1")
        return {"steps": 1}

    monkeypatch.setattr(segue.train, "train", train)
    flags = ("--data", tmp_path, "--out", tmp_path / "out", "--tokens", 100, "--threads", 1, "--no-resume")
    result = call("train", "mini", *flags, "--json")
    assert json.loads(result.out) == {"steps": 1}
    assert result.err == "step 1\n"
    assert seen == {
        "recipe": "mini", "data": tmp_path, "out": tmp_path / "out", "minutes": None, "tokens": 100, "threads": 1,
        "resume": False, "teacher": None,
    }  # fmt: skip
    call("train", "mini", "--data", tmp_path)
    assert seen["out"] == Path("training/mini")
    assert f"the model is in {tmp_path / 'out' / 'model'}" in call("train", "mini", *flags).out


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["mini"], "training mini needs --data"),
        (["mini", "--data", "/nowhere", "--out", "/tmp/x"], "--data /nowhere is not a folder"),
        (["mini", "--data", "/tmp", "--out", "/tmp/x", "--minutes", "1", "--tokens", "1"], "not both"),
        (["mini", "--data", "/tmp", "--out", "/tmp/x", "--teacher", "/tmp"], "takes no teacher"),
    ],
)
def test_what_a_user_may_get_wrong(call: Call, arguments: list[str], fragment: str) -> None:
    assert fragment in call("train", *arguments).error()
