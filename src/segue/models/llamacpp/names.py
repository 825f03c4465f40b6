"""What GGUF calls things: kinds of numbers, architectures, weights, and the metadata that only Segue reads."""

from __future__ import annotations

from importlib.util import find_spec

KINDS = ("f32", "f16", "q8_0", "q4_0")
LEAVES = 32  # of one tree, and so the sequence numbers of one token, at most
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # by transformers' model_type
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROOT = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ROPE_FACTORS = "rope_freqs.weight"

# llama.cpp normalises no text, and puts a space before every piece of it: these keys say what transformers does.
COMPOSED = "segue.tokenizer.nfc"  # bool: text is brought to Unicode's composed form first
PREFIX = "segue.tokenizer.prefix"  # "first" or "always": which pieces get a space, unless they have one


def check(kind: str) -> None:
    """Raise ValueError where no file of this kind can be written here."""
    if kind not in KINDS:
        raise ValueError(f"GGUF type {kind!r} is unknown: choose from {', '.join(KINDS)}")
    if find_spec("gguf") is None:
        raise ValueError("writing GGUF needs the package gguf: pip install 'segue[llamacpp]'")


def gguf_name(name: str) -> str:
    """The GGUF name of a transformers weight; ValueError where it has none."""
    stem, _, part = name.rpartition(".")
    number, _, inner = stem.removeprefix("model.layers.").partition(".")
    if stem in ROOT:
        return f"{ROOT[stem]}.{part}"
    if stem.startswith("model.layers.") and inner in LAYER:
        return f"blk.{number}.{LAYER[inner]}.{part}"
    raise ValueError(f"the weight {name} has no place in GGUF's Llama family")
