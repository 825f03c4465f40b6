"""Training of drafters: it lowers the loss, goes on where it was, and leaves what can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import segue
from segue.decode.speculative.jakiro import Jakiro
from segue.models.heads import trained
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM
from segue.train import loop, train_drafter
from segue.train.recipes import Drafter, drafter_recipe

NUMBERS = {"windows": 24, "prompt": 4, "length": 12, "batch_tokens": 64, "inner": 16, "stages": 2}


@pytest.fixture(scope="module")
def lm() -> LM:
    return segue.model("mini-draft", lean=False, dtype="float32").lm


@pytest.fixture(scope="module")
def texts(lm: LM) -> list[list[int]]:
    return [lm.encode("The little girl went home, and the little boy went with her to the old house. " * 40)]


def quiet(text: str) -> None:
    pass


def learn(recipe: Drafter, lm: LM, texts: list[list[int]], out: Path, **options: Any) -> dict[str, Any]:
    return train_drafter(recipe, lm, texts, out=out, command="segue train drafter", say=quiet, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_a_drafter_learns_and_drafts(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    recipe = drafter_recipe("mlp_speculator", {**NUMBERS, "texts_until": 1, "adam_lr": 0.01})
    summary = learn(recipe, lm, texts, tmp_path, tokens=6000)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert summary["heldout"]["place 1"]["right"] > 30
    assert set(summary["heldout"]) == {"place 1", "place 2", "greedy", "sampled"}
    assert summary["base"] == {"name": "mini-draft", "identity": lm.identity}
    page = (tmp_path / "report.html").read_text()
    assert "<polyline" in page
    assert "place 2" in page
    network = trained(lm, Speculator, tmp_path / "model")
    assert network.shape.stages == 2
    assert network.facts["tokens"] == summary["tokens"]


def test_a_shortlist_is_what_it_guesses_among(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    values = {k: v for k, v in NUMBERS.items() if k != "stages"} | {"texts_until": 1, "shortlist": 300}
    summary = learn(drafter_recipe("jakiro", values), lm, texts, tmp_path, tokens=1000)
    below = [token < 300 for token in texts[0]]
    assert summary["shortlist"] == 300
    assert summary["listed"] == pytest.approx(100 * sum(below) / len(below), abs=8)  # windows cut the text anywhere
    network = trained(lm, JakiroNetwork, tmp_path / "model")
    assert network.shortlist == 300
    answer = segue.model("mini-draft", dtype="float32").generate(
        "The little", method=Jakiro(heads=network), max_tokens=24
    )
    assert answer.stats.drafted > 0
    for kind, number, message in (
        ("mlp_speculator", 300, "shortlist=300 is not for mlp_speculator"),
        ("chimera", lm.vocab_size, "is not short: mini-draft has 6144 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            learn(drafter_recipe(kind, values | {"shortlist": number}), lm, texts, tmp_path / kind, tokens=1000)


@pytest.mark.parametrize(("kind", "numbers"), [("chimera", {"heads": 2}), ("jakiro", {})])
def test_drafters_that_attend_learn_from_whole_texts(
    lm: LM, texts: list[list[int]], tmp_path: Path, kind: str, numbers: dict[str, int]
) -> None:
    values = {k: v for k, v in NUMBERS.items() if k != "stages"} | numbers
    recipe = drafter_recipe(kind, {**values, "texts_until": 1, "adam_lr": 0.01})
    summary = learn(recipe, lm, texts, tmp_path, tokens=6000)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    # Jakiro learns what the model says of the texts, which is seldom what they say.
    assert summary["heldout"]["place 1"]["right"] > 30 or kind == "jakiro"
    assert set(summary["heldout"]) == {"place 1", "place 2", "greedy", "sampled"}
    assert summary["heldout"]["greedy"]["tokens_per_forward"] > 1.15


def test_a_killed_training_ends_as_if_it_had_not_been(
    lm: LM, texts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = drafter_recipe("blockwise_parallel", {k: v for k, v in NUMBERS.items() if k != "stages"} | {"heads": 2})
    learn(recipe, lm, texts, tmp_path / "whole", tokens=600)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real = loop._step

    def stepping(run: loop.Run, spent: float) -> tuple[float, float]:
        if run.step == 4:
            raise RuntimeError("killed")
        return real(run, spent)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stepping)
        with pytest.raises(RuntimeError, match="killed"):
            learn(recipe, lm, texts, tmp_path / "cut", tokens=600)
    learn(recipe, lm, texts, tmp_path / "cut", tokens=600)
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(tmp_path / "cut")[name]), name


def test_a_folder_of_other_numbers_is_refused(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    learn(drafter_recipe("mlp_speculator", NUMBERS), lm, texts, tmp_path, tokens=64)
    with pytest.raises(ValueError, match="was made by other numbers"):
        learn(drafter_recipe("mlp_speculator", {**NUMBERS, "inner": 8}), lm, texts, tmp_path, tokens=64)
    other = drafter_recipe("blockwise_parallel", {"windows": 24})
    with pytest.raises(ValueError, match="holds the work of recipe 'drafter mlp_speculator'"):
        learn(other, lm, texts, tmp_path, tokens=64)


def test_training_goes_on_from_a_drafter(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    recipe = drafter_recipe("mlp_speculator", {**NUMBERS, "texts_until": 1, "adam_lr": 0.01})
    learn(recipe, lm, texts, tmp_path / "first", tokens=3000)
    for name, start in (("fresh", None), ("second", tmp_path / "first" / "model")):
        learn(recipe, lm, texts, tmp_path / name, tokens=64, start=start)
    fresh, second = (
        json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[0])["loss"] for n in ("fresh", "second")
    )
    assert second < 0.7 * fresh


@pytest.mark.parametrize(
    ("kind", "values", "fragment"),
    [
        ("mlp_spekulator", {}, "did you mean 'mlp_speculator'"),
        ("mlp_speculator", {"windows": "many"}, "windows=many is not allowed"),
        ("mlp_speculator", {"temperature": -1}, "temperature=-1 is not allowed"),
        ("mlp_speculator", {"texts_until": 2}, "texts_until=2 is not allowed"),
        ("mlp_speculator", {"windows": "24.5"}, "windows=24.5 is not allowed: a whole number"),
        ("mlp_speculator", {"windows": 0}, "windows=0 is not allowed: above 0"),
        ("mlp_speculator", {"adam_lr": "inf"}, "adam_lr=inf is not allowed: a number"),
        ("mlp_speculator", {"adam_lr": None}, "adam_lr=None is not allowed: a number"),
        ("blockwise_parallel", {"heads": "2.5"}, "heads=2.5 is not allowed: a whole number"),
    ],
)
def test_bad_numbers_are_named(kind: str, values: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        drafter_recipe(kind, values)


def test_numbers_have_their_types() -> None:
    """What counts is whole, also where it is written with a point; what is measured may have a fraction."""
    recipe = drafter_recipe("mlp_speculator", {"windows": "24.0", "adam_lr": "0.5", "seed": "0", "inner": "16.0"})
    assert (recipe.windows, recipe.adam_lr, recipe.seed, recipe.numbers) == (24, 0.5, 0, (("inner", 16),))
    assert all(type(value) is int for value in (recipe.windows, recipe.seed, recipe.size()["inner"]))


def test_switches_of_a_shape_are_0_or_1(lm: LM) -> None:
    assert Speculator.fresh(lm, inner=16, tied=1).shape.tied is True
    assert Speculator.fresh(lm, inner=16, tied=0).shape.tied is False
    with pytest.raises(ValueError, match=r"tied=2 is not allowed: 0 \(no\) or 1 \(yes\)"):
        Speculator.fresh(lm, inner=16, tied=2)


def test_a_small_batch_is_one_pass(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    recipe = drafter_recipe("mlp_speculator", NUMBERS)
    assert (recipe.batch_tokens, recipe.micro_tokens) == (64, 64)
    summary = learn(recipe, lm, texts, tmp_path, tokens=320)
    assert summary["steps"] >= 320 // 64


def test_a_number_of_no_shape_is_named(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mlp_speculator has no number 'size': it has stages, inner"):
        learn(drafter_recipe("mlp_speculator", {**NUMBERS, "size": 8}), lm, texts, tmp_path, tokens=64)
