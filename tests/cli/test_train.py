from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import segue
import segue.train
from segue.api import Model
from segue.train import DRAFTERS, RECIPES, TUNED

from .conftest import VOCABULARY, Call, write_lines


def test_recipes_tunings_and_drafters_are_listed(call: Call) -> None:
    named = [*RECIPES, *TUNED, *(f"drafter {kind}" for kind in DRAFTERS)]
    assert [row["name"] for row in json.loads(call("train", "--json").out)] == named
    lines = call("train").out.splitlines()
    assert [line.split(":")[0] for line in lines] == named
    assert "space: 20 minutes, of a whole model (-m)" in lines
    assert "drafter mlp_speculator: 10 minutes, beside a model (-m)" in lines


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
        "resume": False, "teacher": None, "start": None,
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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_lines(tmp_path / "texts.jsonl", [{"text": "One text. " * 12}, {"prompt": "Another text."}])
    return tmp_path / "texts.jsonl"


def test_options_reach_the_training_of_a_drafter(
    call: Call, tiny: Path, lm: Model, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def train_drafter(
        recipe: Any, on: Any, documents: Any, *, say: Any, progress: Any, **options: Any
    ) -> dict[str, Any]:
        seen.update(options, recipe=recipe, name=on.name, documents=documents)
        say("step 1")
        return {"steps": 1}

    monkeypatch.setattr(segue.train, "train_drafter", train_drafter)
    plain = tmp_path / "plain.txt"
    plain.write_text("A plain text.")
    flags = ("--data", texts, "--data", plain, "--states", tmp_path / "states", "--start", tmp_path / "old",
             "--minutes", 2, "--set", "stages=2", "--set", "adam_lr=0.01")  # fmt: skip
    result = call("train", "drafter", "mlp_speculator", "-m", tiny, *flags, "--json")
    assert json.loads(result.out) == {"steps": 1}
    assert result.err == "step 1\n"
    recipe = seen.pop("recipe")
    assert (recipe.kind, recipe.numbers, recipe.adam_lr) == ("mlp_speculator", (("stages", 2),), 0.01)
    written = ["One text. " * 12, "Another text.", "A plain text."]
    assert seen.pop("documents") == [lm.lm.encode(text) for text in written]
    assert seen == {
        "name": lm.lm.name, "out": Path("training/mlp_speculator"), "minutes": 2.0, "tokens": None, "threads": None,
        "resume": True, "states": tmp_path / "states", "start": tmp_path / "old",
        "command": f"segue train drafter mlp_speculator -m {tiny} --data {texts} --data {plain} "
                   "--set stages=2 --set adam_lr=0.01",
    }  # fmt: skip


def test_options_reach_the_tuning_of_a_model(
    call: Call, tiny: Path, lm: Model, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def tune_model(recipe: Any, source: Any, documents: Any, *, say: Any, **options: Any) -> dict[str, Any]:
        seen.update(options, recipe=recipe, source=source, documents=documents)
        return {"steps": 1}

    monkeypatch.setattr(segue.train, "tune_model", tune_model)
    flags = ("--data", texts, "--tokens", 100, "--no-resume", "--threads", 1, "--set", "length=32", "--set", "mask=0")
    result = call("train", "space", "-m", tiny, "--out", tmp_path / "out", *flags)
    assert result.out == f"the model is in {tmp_path / 'out' / 'model'}\n"
    recipe = seen.pop("recipe")
    assert (recipe.kind, recipe.length, recipe.mask) == ("space", 32, 0)
    assert seen.pop("documents") == [lm.lm.encode("One text. " * 12), lm.lm.encode("Another text.")]
    assert seen == {
        "source": str(tiny), "out": tmp_path / "out", "minutes": None, "tokens": 100, "threads": 1, "resume": False,
        "command": f"segue train space -m {tiny} --data {texts} --set length=32 --set mask=0",
    }  # fmt: skip


def test_a_drafter_is_trained_and_drafts(call: Call, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("The little girl went home. " * 60)
    flags = ("--tokens", 200, "--set", "windows=24", "--set", "prompt=4", "--set", "length=12", "--set", "inner=8")
    result = call(
        "train", "drafter", "blockwise_parallel", "-m", tiny, "--data", data, "--out", tmp_path / "out", *flags
    )
    assert result.code == 0, result
    folder = tmp_path / "out" / "model"
    assert result.out.endswith(f"the model is in {folder}\n")
    plain = call("generate", "The little", "-m", tiny, "--max-tokens", 8, "--method", "plain")
    drafted = call("generate", "The little", "-m", tiny, "--max-tokens", 8, "--method", "blockwise_parallel",
                   "--set", f"heads={folder}")  # fmt: skip
    assert (drafted.code, drafted.out) == (0, plain.out)


def test_a_model_is_tuned_and_its_method_runs(call: Call, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("The little girl went home. " * 60)
    flags = ("--tokens", 128, "--set", "length=16", "--set", "batch_tokens=64", "--set", f"mask={VOCABULARY - 1}")
    result = call("train", "space", "-m", tiny, "--data", data, "--out", tmp_path / "out", *flags)
    assert result.code == 0, result
    folder = tmp_path / "out" / "model"
    assert segue.model(str(folder)).lm.tuned["mask"] == VOCABULARY - 1
    plain = call("generate", "The little", "-m", folder, "--max-tokens", 8, "--method", "plain")
    tuned = call("generate", "The little", "-m", folder, "--max-tokens", 8, "--method", "space")
    assert (tuned.code, tuned.out) == (0, plain.out)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["drafter"], "name the kind of drafter: blockwise_parallel, mlp_speculator"),
        (["drafter", "mlp_spekulator"], "did you mean 'mlp_speculator'"),
        (["drafter", "mlp_speculator"], "training a drafter needs --data"),
        (["drafter", "mlp_speculator", "--teacher", "/tmp"], "a drafter learns from its model: drop --teacher"),
        (["drafter", "mlp_speculator", "--set", "windows=many"], "windows=many is not allowed"),
        (["drafter", "mlp_speculator", "--data", "/tmp"], "/tmp is a folder: name the files"),
        (["drafter", "mlp_speculator", "--data", "/nowhere.txt"], "/nowhere.txt"),
        (["mlp_speculator"], "unknown recipe 'mlp_speculator'"),
        (["mini", "mlp_speculator", "--data", "/tmp"], "KIND is for drafters"),
        (["mini", "--start", "/tmp", "--data", "/tmp"], "no model in /tmp"),
        (["mt-mini", "--start", "/tmp", "--data", "/tmp"], "'mt-mini' cannot go on from a model"),
        (["mini", "--states", "/tmp", "--data", "/tmp"], "--states is for drafters"),
        (["mini", "--set", "heads=2", "--data", "/tmp"], "--set is for drafters"),
        (["mini", "-m", "mini", "--data", "/tmp"], "--model is for drafters"),
        (["space"], "needs --data: texts"),
        (["space", "set_block", "--data", "x"], "KIND is not for space"),
        (["space", "--start", "/tmp"], "--start is not for space"),
        (["space", "--states", "/tmp"], "--states is not for space"),
        (["space", "--teacher", "/tmp"], "--teacher is not for space"),
        (["space", "--set", "inner=8"], "space has no number 'inner': it has length"),
        (["space", "--set", "length=0"], "length=0 is not allowed"),
        (["set_block", "--set", "block=2.5"], "block=2.5 is not allowed: a whole number"),
        (["drafter", "blockwise_parallel", "--set", "heads=2.5"], "heads=2.5 is not allowed: a whole number"),
        (["no-such-thing"], "unknown recipe 'no-such-thing'"),
    ],
)
def test_wrong_combinations_are_named(call: Call, arguments: list[str], fragment: str) -> None:
    assert fragment in call("train", *arguments).error()


def test_empty_texts_are_nothing_to_learn_from(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for recipe in (["drafter", "blockwise_parallel"], ["space"]):
        error = call("train", *recipe, "--data", tmp_path / "empty.txt").error()
        assert "empty.txt is empty: there is nothing to learn from" in error


def test_a_number_of_no_shape_is_named(call: Call, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("The little girl went home. " * 60)
    flags = ("-m", tiny, "--data", data, "--out", tmp_path / "out", "--set", "size=8")
    assert "mlp_speculator has no number 'size'" in call("train", "drafter", "mlp_speculator", *flags).error()
