"""Loading: what is accepted, and one clear message for everything that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.models.source import EMBEDDED
from segue.models.transformers import load as loading
from segue.models.transformers.load import load
from tests.models.families import network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    network("llama").to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_dtype_is_the_checkpoints_own_where_it_is_fast(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "fast_bfloat16", lambda device: True)
    assert load(checkpoint).dtype == torch.bfloat16
    monkeypatch.setattr(loading, "fast_bfloat16", lambda device: False)
    assert load(checkpoint).dtype == torch.float32
    assert load(checkpoint, dtype="bfloat16").dtype == torch.bfloat16
    assert load(checkpoint, dtype=torch.float32).dtype == torch.float32


def test_float16_checkpoints_run_in_float32_on_a_cpu(tmp_path: Path) -> None:
    network("llama").half().save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.float32


def test_the_embedded_models_load_with_plain_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("mini", "mini-draft"):
        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / name)
        model = AutoModelForCausalLM.from_pretrained(EMBEDDED / name)
        ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4
        assert load(name).context_length == model.config.max_position_embeddings
    files = [f for f in EMBEDDED.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 36e6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "the model path is empty"),
        ("./nowhere", "no model at ./nowhere"),
        ("/etc/hostname", "is a file"),
        ("mini-drift", r"no model at mini-drift: .*mini, mini-draft"),
    ],
)
def test_wrong_places(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(source)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path)


def test_missing_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load .*model\.safetensors"):
        load(copy)


def test_truncated_weights(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="are damaged"):
        load(copy)


def test_a_checkpoint_that_lacks_tensors_is_not_filled_with_random_ones(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are missing from the checkpoint: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_tensors_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["intermediate_size"] = 96
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot load|have another shape"):
        load(copy)


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match="cannot load"):
        load(copy)


def test_unknown_family(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "made_up"}')
    with pytest.raises(ValueError, match=r"cannot load .*made_up"):
        load(copy)


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        load(copy)


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_bytes((EMBEDDED / "mini" / name).read_bytes())
    with pytest.raises(ValueError, match=r"the tokenizer knows \d+ tokens, but the model has embeddings for 97"):
        load(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8' is unknown"),
        ({"device": "warp"}, "device='warp' cannot be used"),
        ({"device": "cpu", "device_map": "auto"}, "cannot be combined"),
    ],
)
def test_wrong_options(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(checkpoint, **options)
