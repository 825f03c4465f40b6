"""Llama checkpoints as GGUF, the file format of llama.cpp.

Its rotary embedding turns neighbouring pairs where transformers turns halves, so that the rows of the query and key
projections are reordered; everything else is renamed. Source: the GGUF specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = ("f32", "f16", "q8_0")
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
ROOT = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
NORMAL, CONTROL = 1, 3  # token types


def convert(network: Any, tokenizer: Any, out: Path, kind: str = "f16") -> Path:
    """Write a transformers Llama in memory (linears not packed) as one file; matrices in `kind`, vectors in float32.

    Raises ValueError for another architecture, attention biases, scaled rotary forms, or an unknown kind.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError("writing GGUF needs the package gguf: pip install 'segue[llamacpp]'") from None
    if kind not in KINDS:
        raise ValueError(f"GGUF type {kind!r} is unknown: choose from {', '.join(KINDS)}")
    config = network.config
    _check(config)
    tensors = {_name(name): value for name, value in network.state_dict().items() if not name.endswith("inv_freq")}
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    staging = out.with_suffix(out.suffix + ".tmp")
    writer = gguf.GGUFWriter(staging, "llama")
    _header(writer, config, out.stem)
    if tokenizer is not None:
        _vocabulary(writer, tokenizer, config.vocab_size)
    types = gguf.GGMLQuantizationType
    chosen = {"f32": types.F32, "f16": types.F16, "q8_0": types.Q8_0}[kind]
    for name, value in tensors.items():
        array = _array(name, value, config)
        fits = array.ndim == 2 and not (kind == "q8_0" and array.shape[1] % 32)
        wanted = chosen if fits else types.F16 if array.ndim == 2 else types.F32
        writer.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staging.replace(out)
    return out


def _check(config: Any) -> None:
    if config.model_type != "llama":
        raise ValueError(
            f"GGUF is written for Llama models, and this is {config.model_type}: use llama.cpp's converter"
        )
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    for wrong, what in (
        (config.attention_bias, "attention biases"),
        (config.mlp_bias, "biases in its feed-forward layers"),
        (rope != "default", f"rotary positions of type {rope}"),
    ):
        if wrong:
            raise ValueError(f"this Llama has {what}, which are not written to GGUF yet: use llama.cpp's converter")


def _name(name: str) -> str:
    if name == "lm_head.weight":
        return "output.weight"
    if name in ROOT:
        return ROOT[name]
    parts = name.removeprefix("model.layers.").partition(".")
    if name.startswith("model.layers.") and parts[2] in LAYER:
        return f"blk.{parts[0]}.{LAYER[parts[2]]}"
    raise ValueError(f"the weight {name} has no place in GGUF's Llama")


def _header(writer: Any, config: Any, name: str) -> None:
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    """A byte-level BPE, as its tokenizer.json states it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise ValueError(f"a {state['model']['type']} tokenizer is not written to GGUF yet: only byte-level BPE is")
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types([CONTROL if i in special or i not in by_id else NORMAL for i in range(size)])
    merges = state["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_add_bos_token(False)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)


def _array(name: str, value: Tensor, config: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(out, in) or (out,) in float32; query and key rows reordered from halves to pairs."""
    array: np.ndarray[Any, np.dtype[np.float32]] = value.detach().to("cpu", torch.float32).numpy()
    heads = {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}
    count = heads.get(name.split(".", 2)[-1])
    if count is None:
        return array
    rows, columns = array.shape
    return np.ascontiguousarray(
        array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
