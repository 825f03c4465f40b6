from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segue.models.build import fresh_llama, project_embeddings
from segue.train import LanguageModel, loop, train

TOKENS = 64 * 12


def quiet(text: str) -> None:
    pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop._step

    def stepping(run: loop.Run, spent: float) -> tuple[float, float]:
        if run.step == step:
            raise RuntimeError("killed")
        return real(run, spent)

    monkeypatch.setattr(loop, "_step", stepping)


def run_twice(micro: LanguageModel, corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a checkpoint at every step, die before step 5."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        die_at(5, patch)
        with pytest.raises(RuntimeError, match="killed"):
            train(micro, data=corpus, out=out, tokens=TOKENS, say=quiet)


@pytest.fixture
def whole(micro: LanguageModel, corpus: Path, tmp_path: Path) -> Path:
    train(micro, data=corpus, out=tmp_path / "whole", tokens=TOKENS, say=quiet)
    return tmp_path / "whole"


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_killed_run_ends_with_the_same_weights(
    micro: LanguageModel, corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    run_twice(micro, corpus, out, monkeypatch)
    (out / "checkpoints" / "step-0000006.new").write_bytes(b"half a checkpoint")
    said: list[str] = []
    summary = train(micro, data=corpus, out=out, tokens=TOKENS, say=said.append)
    assert any("resuming at step 5" in line for line in said)
    assert summary["steps"] == 12
    assert same(weights(out), weights(whole))
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if "loss" in record] == list(range(1, 13))
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
    micro: LanguageModel, corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corrupt"
    run_twice(micro, corpus, out, monkeypatch)
    newest = out / "checkpoints" / "step-0000005.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    said: list[str] = []
    train(micro, data=corpus, out=out, tokens=TOKENS, say=said.append)
    assert any("step-0000005.pt cannot be read" in line for line in said)
    assert any("resuming at step 4" in line for line in said)
    assert same(weights(out), weights(whole))


def test_training_learns_and_reports(micro: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    summary = train(micro, data=corpus, out=tmp_path, tokens=64 * 40, say=quiet)
    scores = summary["heldout"]
    assert summary["tokens"] == 64 * 40
    assert scores["maths"]["perplexity"] < 100  # 300 before training
    assert scores["maths"]["bits_per_byte"] < 8
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_ctrl_c_saves(micro: LanguageModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: loop.Run, spent: float) -> tuple[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(micro, data=corpus, out=tmp_path, tokens=TOKENS, say=quiet)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000.pt"]


def test_a_student_learns_from_its_teacher(micro: LanguageModel, corpus: Path, whole: Path, tmp_path: Path) -> None:
    student = dataclasses.replace(micro, distil=0.75)
    train(student, data=corpus, out=tmp_path / "student", tokens=TOKENS, teacher=whole / "model", say=quiet)
    made, given = (folder / "model" / "tokenizer.json" for folder in (tmp_path / "student", whole))
    assert made.read_bytes() == given.read_bytes()


def test_a_later_run_goes_on_from_an_earlier_one(
    micro: LanguageModel, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    """With its weights, at its place in the data, and knowing of it."""
    out = tmp_path / "later"
    summary = train(micro, data=corpus, out=out, tokens=TOKENS, start=whole / "model", say=quiet)
    first, second = (json.loads((folder / "model" / "training.json").read_text()) for folder in (whole, out))
    assert sum(first["read"].values()) == TOKENS
    assert sum(second["read"].values()) == 2 * TOKENS
    assert [leg["tokens"] for leg in second["legs"]] == [TOKENS, TOKENS]
    assert summary["earlier"] == first["legs"]
    losses = [json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"] for folder in (whole, out)]
    assert losses[1] < losses[0] - 0.3


def test_what_a_run_cannot_go_on_from(micro: LanguageModel, corpus: Path, whole: Path, tmp_path: Path) -> None:
    wide = dataclasses.replace(micro, shape=dataclasses.replace(micro.shape, hidden_size=48))
    other = dataclasses.replace(micro, mixture={"maths": 1.0})
    for recipe, message in ((wide, "has hidden_size=32, recipe 'micro' has 48"), (other, "of other sources than")):
        with pytest.raises(ValueError, match=message):
            train(recipe, data=corpus, out=tmp_path / "out", tokens=TOKENS, start=whole / "model", say=quiet)
    (whole / "model" / "training.json").unlink()
    with pytest.raises(ValueError, match=r"training\.json is missing"):
        train(micro, data=corpus, out=tmp_path / "out", tokens=TOKENS, start=whole / "model", say=quiet)
    with pytest.raises(ValueError, match="'mt-mini' cannot go on from a model"):
        train("mt-mini", data=corpus, out=tmp_path / "out", tokens=TOKENS, start=whole / "model", say=quiet)
    assert not (tmp_path / "out").exists()


def test_the_schedule_warms_up_holds_and_decays(micro: LanguageModel) -> None:
    assert [round(loop.rate(micro, spent), 3) for spent in (0.01, 0.5, 0.7, 0.85, 1.0)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_changed_numbers_do_not_resume(micro: LanguageModel, corpus: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="other numbers"):
        train(dataclasses.replace(micro, clip=2.0), data=corpus, out=whole, tokens=TOKENS, say=quiet)


def test_a_used_folder_is_not_overwritten(micro: LanguageModel, corpus: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="already holds checkpoints"):
        train(micro, data=corpus, out=whole, tokens=TOKENS, resume=False, say=quiet)


def test_a_full_disk_is_named(
    micro: LanguageModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*No space left.*free some space"):
        train(micro, data=corpus, out=tmp_path, tokens=64, say=quiet)


def test_student_embeddings_keep_the_geometry_of_the_teacher(micro: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (fresh_llama(micro.shape, generator, end_of_text=0, padding=1) for _ in range(2))
    project_embeddings(teacher, student)
    gram = [model.get_input_embeddings().weight @ model.get_input_embeddings().weight.T for model in (teacher, student)]
    assert torch.allclose(*gram, atol=1e-3)
