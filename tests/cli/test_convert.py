"""`segue convert` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.conftest import VOCABULARY, Call

gguf = pytest.importorskip("gguf")


def test_a_file_is_written(call: Call, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    told = call("convert", "-m", tiny, "-o", out, "--type", "q8_0", "--json")
    assert told.code == 0, told
    summary = json.loads(told.out)
    assert summary.pop("seconds") > 0
    size = out.stat().st_size
    assert summary == {"model": "tiny", "family": "llama", "file": str(out), "type": "q8_0", "bytes": size}
    reader = gguf.GGUFReader(out)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == VOCABULARY
    assert {t.tensor_type.name for t in reader.tensors} == {"F32", "Q8_0"}
    assert list(tmp_path.iterdir()) == [out]


def test_the_embedded_model_in_half_precision_is_the_default(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert call("convert", "-o", out).out == f"mini as f16 is in {out}, {out.stat().st_size / 2**20:,.1f} MiB\n"
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"F32", "F16"}


def test_what_is_there_is_replaced_only_by_force(call: Call, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    assert "--force replaces it" in call("convert", "-m", tiny, "-o", out).error()
    assert out.read_bytes() == b"precious"
    assert call("convert", "-m", tiny, "-o", out, "--force").code == 0
    assert out.read_bytes().startswith(b"GGUF")


def test_a_model_without_a_tokenizer_is_written_without_a_vocabulary(call: Call, broken: Path, tmp_path: Path) -> None:
    for file in broken.glob("tokenizer*"):
        file.unlink()
    out = tmp_path / "m.gguf"
    assert call("convert", "-m", broken, "-o", out).code == 0
    assert gguf.GGUFReader(out).fields["tokenizer.ggml.model"].contents() == "no_vocab"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "m.gguf", "--type", "q3_k"], "GGUF type 'q3_k' is unknown: choose from f32, f16, q8_0, q4_0"),
        (["-o", "."], "is a folder: name a file"),
        (["-o", "nowhere/m.gguf"], "there is no folder nowhere"),
        (["-o", "m.gguf", "-m", "x.gguf"], "is GGUF already"),
        (["-o", "m.gguf", "-m", "./nothing"], "no model at ./nothing"),
        ([], "--output"),
    ],
)
def test_mistakes_are_told(
    call: Call, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in call("convert", *arguments).error()
    assert list(tmp_path.iterdir()) == []


def test_another_family_and_a_missing_package_are_told(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)).save_pretrained(tmp_path / "gpt2")
    out = tmp_path / "m.gguf"
    assert "and this is gpt2" in call("convert", "-m", tmp_path / "gpt2", "-o", out).error()
    find: Any = __import__("importlib.util").util.find_spec
    gone = lambda name, *rest: None if name == "gguf" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("segue.models.llamacpp.names.find_spec", gone)
    assert "pip install 'segue[llamacpp]'" in call("convert", "-m", tiny, "-o", out).error()


def test_a_full_disk_leaves_nothing_behind(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000})())
    assert "MiB free" in call("convert", "-m", tiny, "-o", tmp_path / "m.gguf").error()
    assert list(tmp_path.iterdir()) == []
