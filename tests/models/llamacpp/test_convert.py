"""GGUF files: read back with the gguf package, and computed by llama.cpp to the logits of transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from segue.models.llamacpp.convert import convert
from tests.models.families import BASE, CONFIGS, WINDOW, network
from tests.models.llamacpp.conftest import Logits

gguf = pytest.importorskip("gguf")

LLAMA3 = CONFIGS["llama3-rope"]().rope_parameters
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**BASE),
    "llama-tied-wide-heads": lambda: tf.LlamaConfig(**BASE, tie_word_embeddings=True, head_dim=12),
    "llama-biases": lambda: tf.LlamaConfig(**BASE, attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: tf.LlamaConfig(**BASE, rope_parameters=LINEAR),
    "llama-llama3": lambda: tf.LlamaConfig(**BASE, rope_parameters=LLAMA3),
    "mistral": lambda: tf.MistralConfig(**BASE, sliding_window=None),
    "mistral-window-of-the-context": lambda: tf.MistralConfig(**BASE, sliding_window=256),
    "mistral-llama3": lambda: tf.MistralConfig(**BASE, sliding_window=None, rope_parameters=LLAMA3),
    "qwen2": lambda: tf.Qwen2Config(**BASE),
    "qwen2-linear": lambda: tf.Qwen2Config(**BASE, rope_parameters=LINEAR),
    "qwen3": lambda: tf.Qwen3Config(**BASE, head_dim=8),
    "qwen3-tied-wide-heads": lambda: tf.Qwen3Config(**BASE, head_dim=16, tie_word_embeddings=True),
}
REFUSED = {
    "gpt2": (CONFIGS["gpt2"], "this is gpt2"),
    "mistral-window": (CONFIGS["mistral-window"], f"a sliding window of {WINDOW} tokens in a context of 256"),
    "qwen2-window": (CONFIGS["qwen2-window"], f"a sliding window of {WINDOW}"),
    "yarn": (
        lambda: tf.Qwen3Config(**BASE, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        "rotary positions of type yarn",
    ),
    "qwen-llama3": (lambda: tf.Qwen3Config(**BASE, rope_parameters=LLAMA3), "GGUF has for Llama only"),
    "gelu": (lambda: tf.LlamaConfig(**BASE, hidden_act="gelu"), "the activation gelu"),
}
IDS = [0, *np.random.default_rng(5).integers(3, 97, 180).tolist()]


def random_network(config: Any) -> Any:
    """Every weight random, norms and biases too, which start at one and zero."""
    torch.manual_seed(3)
    net = tf.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    for weight in net.parameters():
        if weight.ndim == 1:
            weight.data += 0.2 * torch.randn(weight.shape)
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_llamacpp_gives_the_logits_of_transformers(family: str, logits: Logits, tmp_path: Path) -> None:
    net = random_network(FAMILIES[family]())
    found = logits(convert(net, None, tmp_path / "m.gguf", "f32"), IDS)
    with torch.no_grad():
        expected = net(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("case", REFUSED)
def test_what_llamacpp_would_compute_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert(random_network(config()), None, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_can_be_read_back(mini: tuple[Any, Any], tmp_path: Path) -> None:
    bare, tokenizer = mini
    seen: list[tuple[int, int]] = []
    path = convert(bare, tokenizer, tmp_path / "mini.gguf", "f32", lambda done, total: seen.append((done, total)))
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t.data for t in reader.tensors}
    assert seen == [(i, len(tensors)) for i in range(len(tensors) + 1)]
    state = bare.state_dict()
    down = state["model.layers.3.mlp.down_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.3.ffn_down.weight"], down)
    query = state["model.layers.0.self_attn.q_proj.weight"].numpy()
    heads = query.reshape(4, 2, 32, 256)
    assert np.array_equal(tensors["blk.0.attn_q.weight"].reshape(4, 32, 2, 256).swapaxes(1, 2), heads)
    assert "output.weight" not in tensors
    fields = reader.fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32
    assert fields["llama.attention.head_count_kv"].contents() == 2
    assert fields["llama.attention.key_length"].contents() == 64
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 6144
    assert tokens[100] == tokenizer.convert_ids_to_tokens(100)
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("kind", "levels"), [("q8_0", 127), ("q4_0", 8)])
def test_quantized_weights_stay_within_their_step(
    mini: tuple[Any, Any], tmp_path: Path, kind: str, levels: int
) -> None:
    bare, tokenizer = mini
    reader = gguf.GGUFReader(convert(bare, tokenizer, tmp_path / "q.gguf", kind))
    tensors = {t.name: t for t in reader.tensors}
    tensor = tensors["blk.1.ffn_up.weight"]
    assert tensor.tensor_type.name == kind.upper()
    assert tensors["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = bare.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    step = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / levels
    # The scale itself is rounded to half precision; q4_0 has one level less on the side of the smaller sign.
    assert (np.abs(values - weight).reshape(-1, 32) <= (0.6 if kind == "q8_0" else 1.01) * step + 1e-6).all()


def test_rows_that_no_block_fits_are_written_in_f16(tmp_path: Path) -> None:
    net = random_network(tf.LlamaConfig(**{**BASE, "intermediate_size": 48}))
    reader = gguf.GGUFReader(convert(net, None, tmp_path / "q.gguf", "q4_0"))
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q8_0"


@pytest.mark.parametrize(("kind", "distance"), [("f16", 0.01), ("q8_0", 0.1)])
def test_smaller_kinds_are_close(kind: str, distance: float, logits: Logits, tmp_path: Path) -> None:
    net = random_network(FAMILIES["llama"]())
    exact = logits(convert(net, None, tmp_path / "exact.gguf", "f32"), IDS)
    rough = logits(convert(net, None, tmp_path / "rough.gguf", kind), IDS)
    assert 0 < np.abs(exact - rough).mean() < distance


def test_numbers_beyond_f16_are_not_made_infinite(tmp_path: Path) -> None:
    net = random_network(FAMILIES["llama"]())
    net.model.layers[1].mlp.up_proj.weight.data[3, 4] = -70000.0
    with pytest.raises(ValueError, match=r"blk.1.ffn_up.weight has numbers beyond 65504, which f16 cannot hold"):
        convert(net, None, tmp_path / "m.gguf", "f16")
    convert(net, None, tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"the old one")
    net = network("llama")

    def fail(done: int, total: int) -> None:
        if done == 5:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        convert(net, None, out, "f16", fail)
    with pytest.raises(ValueError, match="'q3' is unknown: choose from f32, f16, q8_0, q4_0"):
        convert(net, None, out, "q3")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
        with pytest.raises(ValueError, match="1 MiB free"):
            convert(net, None, out, "f16")
    assert out.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [out]


def test_llamacpp_gives_the_same_greedy_tokens(mini: tuple[Any, Any], cpp: Any, logits: Logits, tmp_path: Path) -> None:
    bare, tokenizer = mini
    path = convert(bare, tokenizer, tmp_path / "mini.gguf", "f32")
    lines = (Path(__file__).parents[2] / "data" / "prompts.jsonl").read_text().splitlines()[::9]
    for line in lines:
        ids = tokenizer(json.loads(line)["prompt"])["input_ids"][:300]
        whole = bare.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0].tolist()
        assert logits(path, whole[:-1]).argmax(1)[len(ids) - 1 :].tolist() == whole[len(ids) :]
