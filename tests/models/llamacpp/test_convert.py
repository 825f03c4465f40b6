"""GGUF files read back with the gguf package hold the checkpoint; llama.cpp, where installed, gives its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from segue.models.llamacpp.convert import convert
from segue.models.source import EMBEDDED
from tests.models.families import network

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def mini() -> tuple[Any, Any]:
    place = str(EMBEDDED / "mini")
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(place)


def test_what_is_written_can_be_read_back(mini: tuple[Any, Any], tmp_path: Path) -> None:
    bare, tokenizer = mini
    reader = gguf.GGUFReader(convert(bare, tokenizer, tmp_path / "mini.gguf", "f32"))
    tensors = {t.name: t.data for t in reader.tensors}
    state = bare.state_dict()
    down = state["model.layers.3.mlp.down_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.3.ffn_down.weight"], down)
    query = state["model.layers.0.self_attn.q_proj.weight"].numpy()
    heads = query.reshape(4, 2, 32, 256)
    assert np.array_equal(tensors["blk.0.attn_q.weight"].reshape(4, 32, 2, 256).swapaxes(1, 2), heads)
    assert "output.weight" not in tensors
    fields = reader.fields
    assert fields["llama.attention.head_count_kv"].contents() == 2
    assert fields["llama.attention.key_length"].contents() == 64
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 6144
    assert tokens[100] == tokenizer.convert_ids_to_tokens(100)


def test_q8_stays_within_its_step(mini: tuple[Any, Any], tmp_path: Path) -> None:
    bare, tokenizer = mini
    reader = gguf.GGUFReader(convert(bare, tokenizer, tmp_path / "q.gguf", "q8_0"))
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = bare.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    step = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / 127
    assert (np.abs(values - weight).reshape(-1, 32) <= 0.6 * step + 1e-6).all()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is gpt2"):
        convert(network("gpt2"), None, tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="'q3'"):
        convert(network("llama"), None, tmp_path / "x.gguf", "q3")
    assert list(tmp_path.iterdir()) == []


def test_llamacpp_gives_the_same_greedy_tokens(mini: tuple[Any, Any], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    bare, tokenizer = mini
    path = convert(bare, tokenizer, tmp_path / "mini.gguf", "f32")
    llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False)
    lines = (Path(__file__).parents[2] / "data" / "prompts.jsonl").read_text().splitlines()[::9]
    for line in lines:
        ids = tokenizer(json.loads(line)["prompt"])["input_ids"][:300]
        expected = bare.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
        llama.reset()
        llama.eval(ids)
        found: list[int] = []
        for _ in expected:
            row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), shape=(6144,))
            found.append(int(row.argmax()))
            llama.eval(found[-1:])
        assert found == expected
