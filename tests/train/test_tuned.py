"""Tuning of whole models: it lowers the loss, goes on where it was, and leaves a model that its method knows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import segue
from segue.models.tuning import SHEET, TUNINGS
from segue.train import loop, tune_model
from segue.train.recipes import tuned_recipe
from segue.train.tuned import TunedTask

NUMBERS = {"length": 16, "batch_tokens": 64, "adam_lr": 0.002}
TOKENS = 64 * 40
BASE = "mini-draft"
kinds = pytest.mark.parametrize("kind", TUNINGS)


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    lm = segue.model(BASE).lm
    return [lm.encode("The little girl went home, and the little boy went with her to the old house. " * 60)]


def quiet(text: str) -> None:
    pass


def tune(kind: str, texts: list[list[int]], out: Path, tokens: int = TOKENS, **numbers: Any) -> dict[str, Any]:
    recipe = tuned_recipe(kind, NUMBERS | numbers)
    return tune_model(recipe, BASE, texts, out=out, command=f"segue train {kind}", tokens=tokens, say=quiet)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines() if "loss" in line]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def done(texts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every kind's work folder and summary."""
    made = {}
    for kind in TUNINGS:
        out = tmp_path_factory.mktemp(kind)
        made[kind] = out, tune(kind, texts, out)
    return made


Done = dict[str, tuple[Path, dict[str, Any]]]


@kinds
def test_tuning_lowers_the_loss_and_says_what_it_did_to_the_model(done: Done, kind: str) -> None:
    out, summary = done[kind]
    found = losses(out)
    assert len(found) == TOKENS // 64
    assert sum(found[-8:]) < 0.6 * sum(found[:8])
    heldout = summary["heldout"]
    assert set(heldout) == {"before", "now", "greedy", "plain"}
    assert heldout["now"]["perplexity"] < 0.5 * heldout["before"]["perplexity"]
    assert heldout["plain"]["tokens_per_forward"] == 1
    assert heldout["greedy"]["tokens_per_forward"] >= 1
    assert (summary["kind"], summary["base"]) == (kind, BASE)
    page = (out / "report.html").read_text()
    assert "<polyline" in page
    assert "before" in page


@kinds
def test_what_is_exported_is_a_model_as_any_other(done: Done, kind: str, texts: list[list[int]]) -> None:
    """transformers, which knows nothing of segue.json, gives it the perplexity that was reported."""
    out, summary = done[kind]
    network = AutoModelForCausalLM.from_pretrained(out / "model", dtype="float32")
    pieces = [texts[0][i : i + 16] for i in range(0, len(texts[0]) - 15, 16)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(20)).tolist()
    held = torch.tensor([pieces[i] for i in order[: len(pieces) // 20]])
    with torch.no_grad():
        perplexity = math.exp(float(network(input_ids=held, labels=held).loss))
    # It was written in bfloat16.
    assert perplexity == pytest.approx(summary["heldout"]["now"]["perplexity"], rel=0.03)


@kinds
def test_the_method_knows_its_model(done: Done, kind: str) -> None:
    out, _ = done[kind]
    model = segue.model(str(out / "model"))
    sheet = json.loads((out / "model" / SHEET).read_text())
    assert model.lm.tuned == sheet
    assert sheet["kind"] == kind
    assert (sheet["base"], sheet["training"]["tokens"]) == (BASE, TOKENS)
    assert model.generate("The little girl", method=kind, max_tokens=12).text
    if TUNINGS[kind].masks:
        with pytest.raises(ValueError, match=f"was not tuned for {kind}"):
            segue.model(BASE).generate("The little girl", method=kind, max_tokens=12)
        # Tuned for one method is not tuned for another.
        other = next(name for name in TUNINGS if name != kind and TUNINGS[name].masks)
        with pytest.raises(ValueError, match=f"was not tuned for {other}"):
            model.generate("The little girl", method=other, max_tokens=12)


@kinds
def test_a_killed_tuning_ends_as_if_it_had_not_been(
    texts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tune(kind, texts, tmp_path / "whole", tokens=64 * 6)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real = loop._step

    def stepping(run: loop.Run, spent: float) -> tuple[float, float]:
        if run.step == 4:
            raise RuntimeError("killed")
        return real(run, spent)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stepping)
        with pytest.raises(RuntimeError, match="killed"):
            tune(kind, texts, tmp_path / "cut", tokens=64 * 6)
    summary = tune(kind, texts, tmp_path / "cut", tokens=64 * 6)
    assert summary["steps"] == 6
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(tmp_path / "cut")[name]), name
    # Before is the base model, not the one that was resumed.
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["heldout"]["before"] == whole["heldout"]["before"]


@kinds
def test_every_step_reads_other_texts_by_its_number_alone(texts: list[list[int]], kind: str) -> None:
    task = TunedTask(tuned_recipe(kind, NUMBERS | {"length": 24}), BASE, texts)

    def step() -> float:
        return sum(one.entropy * one.share for one in task.passes(0.0))

    first = [step() for _ in range(3)]
    assert len(set(first)) == 3
    task.place = {"step": 1}
    assert [step(), step()] == first[1:]


def test_another_seed_is_another_model(texts: list[list[int]], tmp_path: Path) -> None:
    """Without this the test above would hold of a training that has no chance in it."""
    for seed in (20, 21):
        tune("space", texts, tmp_path / str(seed), tokens=128, seed=seed)
    one, other = weights(tmp_path / "20"), weights(tmp_path / "21")
    assert any(not torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize(
    ("kind", "values", "fragment"),
    [
        ("space", {"length": "long"}, "length=long is not allowed"),
        ("space", {"length": 1}, "length=1 is not allowed"),
        ("space", {"length": "64.5"}, "length=64.5 is not allowed: a whole number"),
        ("space", {"adam_lr": -1}, "adam_lr=-1 is not allowed"),
        ("space", {"adam_lr": 0}, "adam_lr=0.0 is not allowed: above 0"),
        ("space", {"mask": -3}, "mask=-3 is not allowed"),
        ("space", {"inner": 8}, "space has no number 'inner': it has length, mask, batch_tokens, adam_lr, seed, k, sh"),
        ("space", {"k": 0}, "k=0 is not allowed: at least 1"),
        ("space", {"k": "2.5"}, "k=2.5 is not allowed: a whole number"),
        ("space", {"share": "1.5"}, "share=1.5 is not allowed: from 0"),
        ("space", {"block": 4}, "space has no number 'block'"),
        ("set_block", {"block": 0}, "block=0 is not allowed: at least 1"),
        ("set_block", {"block": "wide"}, "block=wide is not allowed: a number"),
        ("lexical_units", {"k": 1}, "k=1 is not allowed: at least 2"),
        ("lexical_units", {"alpha": 1}, "alpha=1 is not allowed: from 0 to below 1"),
        ("free", {"exit": "1.5"}, "exit=1.5 is not allowed: a whole number"),
        ("free", {"distil": "-0.5"}, "distil=-0.5 is not allowed: a number of at least 0"),
        ("free", {"k": 4}, "free has no number 'k': it has length, mask, batch_tokens, adam_lr, seed, exit, distil"),
    ],
)
def test_bad_numbers_are_named(kind: str, values: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        tuned_recipe(kind, values)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("space", {"k": 2, "share": 0.25}),
        ("lexical_units", {"k": 3, "alpha": 0.5}),
        ("set_block", {"block": 4}),
        ("free", {"exit": 1, "distil": 0.0}),
    ],
)
def test_an_objectives_own_numbers_reach_it(
    texts: list[list[int]], tmp_path: Path, kind: str, numbers: dict[str, Any]
) -> None:
    recipe = tuned_recipe(kind, NUMBERS | {name: str(value) for name, value in numbers.items()})
    task = TunedTask(recipe, BASE, texts)
    assert {name: getattr(task.objective, name) for name in numbers} == numbers
    # The model says by which numbers it was tuned, and a work folder is of these numbers.
    task.export(tmp_path / "model", {})
    sheet = json.loads((tmp_path / "model" / SHEET).read_text())
    assert {name: sheet[name] for name in numbers} == numbers
    assert recipe.fingerprint() != tuned_recipe(kind, NUMBERS).fingerprint()


def test_space_without_a_share_is_ordinary_fine_tuning(texts: list[list[int]]) -> None:
    """The twin that a tuned model is compared with: nothing is masked, and the loss is the next token's."""
    task = TunedTask(tuned_recipe("space", NUMBERS | {"share": 0}), BASE, texts)
    (only,) = task.passes(0.0)
    generator = torch.Generator().manual_seed(task.recipe.seed)
    ids = task.texts[torch.randint(len(task.texts), (4,), generator=generator)]
    assert only.entropy == pytest.approx(task.model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


def test_the_given_mask_is_used(texts: list[list[int]], tmp_path: Path) -> None:
    for mask in (0, 6000):
        tune("set_block", texts, tmp_path / str(mask), tokens=64, mask=mask)
        assert segue.model(str(tmp_path / str(mask) / "model")).lm.tuned["mask"] == mask


@pytest.mark.parametrize(
    ("kind", "numbers", "fragment"),
    [
        ("space", {"mask": 6144}, r"no token to mask with: .* --set mask=ID \(below 6144\)"),
        ("free", {"mask": 5}, "mask=5 is not for free, which masks nothing"),
        ("space", {"length": 100_000}, "length=100000 is not allowed: mini-draft reads up to"),
        ("space", {"length": 512}, r"windows of 512 tokens are too few: .* lower --set length"),
    ],
)
def test_numbers_that_do_not_fit_the_model_are_named(
    texts: list[list[int]], tmp_path: Path, kind: str, numbers: dict[str, int], fragment: str
) -> None:
    with pytest.raises(ValueError, match=fragment):
        tune(kind, texts, tmp_path, **numbers)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mt-mini is an encoder-decoder, and space tunes decoders alone"):
        tune_model(
            tuned_recipe("space", NUMBERS), "mt-mini", [[1, 2, 3] * 400], out=tmp_path, command="", tokens=64, say=quiet
        )


def test_a_folder_of_other_numbers_is_refused(texts: list[list[int]], tmp_path: Path) -> None:
    tune("space", texts, tmp_path, tokens=64)
    with pytest.raises(ValueError, match="was made by other numbers"):
        tune("space", texts, tmp_path, tokens=64, length=8)
    with pytest.raises(ValueError, match="holds the work of recipe 'space', not of 'set_block'"):
        tune("set_block", texts, tmp_path, tokens=64)
