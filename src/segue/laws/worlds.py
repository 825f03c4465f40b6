"""Tiny worlds for the laws: random networks of several families, and enumerable tables. Nothing is downloaded."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from segue.laws.oracle import NetworkOracle, Oracle, TableOracle
from segue.models.cost import FLAT
from segue.models.lm import LM
from segue.models.toy import ToyLM
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.load import wrap

FAMILIES = ("llama", "gpt2", "gemma2", "qwen3")
# Encoder-decoders, with the spread of their weights and factors for embeddings and for queries and keys: such as make
# texts of many tokens that depend on the source. With plain noise they repeat one token.
TEXT_TO_TEXT = {"t5": (0.3, 0.1, 4.0), "t5-gated": (0.3, 1.0, 1.0), "bart": (0.1, 1.0, 6.0), "marian": (0.1, 1.0, 6.0)}
_SHARP = (".q.", ".k.", "q_proj", "k_proj", "relative_attention_bias")
VOCABULARY = 96
CONTEXT = 96
LENGTHS = (2, 7, 19, 33)  # of the prompts of a network world
ROWS = 1 << 15  # of a GGUF world's cache: wide searches hold many texts
_SPREAD = 0.3  # of the random weights: large enough that outputs vary


@dataclass(frozen=True)
class World:
    """A model, somebody who knows what it would write, and prompts."""

    lm: LM
    oracle: Oracle
    prompts: list[list[int]]


def network(family: str, seed: int = 0) -> Any:
    """A two-layer network with random weights: grouped queries (llama), learned positions (gpt2), sliding windows
    (gemma2 with soft-caps, qwen3). Encoder-decoders: relative positions (t5), learned ones and a forced first token
    (bart), sinusoidal ones and a forbidden token (marian); both force the end of text where there is no more room."""
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
    block: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    block |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT, "pad_token_id": None}
    pair: dict[str, Any] = {"d_model": 32, "max_position_embeddings": CONTEXT, "pad_token_id": 0}
    pair["tie_word_embeddings"] = False  # a tied head repeats the last token for ever in so small a network
    for half in ("encoder", "decoder"):
        pair |= {f"{half}_layers": 2, f"{half}_attention_heads": 4, f"{half}_ffn_dim": 48}
    t5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    t5 |= {"vocab_size": VOCABULARY, "eos_token_id": None, "decoder_start_token_id": 0}
    configs = {
        "llama": lambda: LlamaConfig(**sizes, **block),
        "gpt2": lambda: GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
        "gemma2": lambda: Gemma2Config(
            **sizes, **block, sliding_window=8, query_pre_attn_scalar=8, tie_word_embeddings=False
        ),
        "qwen2": lambda: Qwen2Config(**sizes, **{k: v for k, v in block.items() if k != "head_dim"}),
        "qwen3": lambda: Qwen3Config(**sizes, **block, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "t5": lambda: T5Config(**t5),
        "t5-gated": lambda: T5Config(**t5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "bart": lambda: BartConfig(**sizes, **pair, decoder_start_token_id=2, forced_eos_token_id=2),
        "marian": lambda: MarianConfig(**sizes, **pair, decoder_start_token_id=0, forced_eos_token_id=3),
    }
    if family not in configs:
        raise ValueError(f"no tiny network of family {family!r}: there are {', '.join(configs)}")
    kind = AutoModelForSeq2SeqLM if family in TEXT_TO_TEXT else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = kind.from_config(configs[family]()).float().eval()
    if family == "bart":
        model.generation_config.forced_bos_token_id = 5
    if family == "marian":  # as its checkpoints do with the padding, which starts their decoder
        model.generation_config.bad_words_ids = [[0]]
    spread, embeddings, sharpness = TEXT_TO_TEXT.get(family, (_SPREAD, 1.0, 1.0))
    _shake(model, spread, seed, keep=0.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            factor = sharpness if any(part in name for part in _SHARP) else 1.0
            weight.mul_(embeddings if name == "shared.weight" else factor)
    return model


def network_world(family: str, seed: int = 0) -> World:
    """A tiny network with transformers' generate as the oracle."""
    lm = wrap(network(family, seed), name=f"tiny-{family}-{seed}")
    return World(timeless(lm), NetworkOracle(lm), prompts(lm, seed))


def prompts(lm: LM, seed: int = 0) -> list[list[int]]:
    """The prompts of a model's world."""
    if isinstance(lm, ToyLM):
        return [[0], [1, 0, 1, 0, 1], [i % lm.vocab_size for i in range(7)]]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(lm.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def gguf_world(family: str, seed: int = 0) -> World:
    """The same network as a GGUF file run by llama.cpp, with transformers' generate on the original as the oracle.
    Only for families that llama.cpp knows (without windows: llama and qwen2 of these)."""
    net = network(family, seed)
    lm = _as_gguf(net, f"tiny-{family}-{seed}")
    return World(lm, NetworkOracle(lm, net), prompts(lm, seed))


def _as_gguf(net: Any, name: str) -> LM:
    from segue.models.llamacpp.convert import convert
    from segue.models.llamacpp.load import load

    with tempfile.TemporaryDirectory(prefix="segue-world-") as folder:
        lm = load(convert(net, None, Path(folder) / f"{name}.gguf", "f32"), kv_dtype="float32", kv_rows=ROWS)
    _originals[lm] = net
    return timeless(lm)


def timeless(lm: LM) -> LM:
    """Its forwards count as costing the same whatever they score, so that no clock decides what a method does."""
    vars(lm)["cost"] = FLAT
    return lm


def oracle_of(lm: LM) -> NetworkOracle:
    """transformers with the network of a model, or with the one that a GGUF file was made from."""
    return NetworkOracle(lm, _originals.get(lm))


_originals: WeakKeyDictionary[LM, Any] = WeakKeyDictionary()  # what a GGUF file was made from


def toy_world(vocab_size: int = 3, eos: int | None = None, seed: int = 0) -> World:
    """A table with its exact law; its prompts repeat themselves."""
    lm = ToyLM(vocab_size, 2, seed, eos=eos)
    lm.context_length = 64
    return World(lm, TableOracle(lm), prompts(lm))


def neighbour(lm: LM, seed: int = 1) -> LM:
    """A model that often agrees with `lm`, and often does not: a draft for the laws."""
    if isinstance(lm, ToyLM):
        other = ToyLM(lm.vocab_size, lm.order, seed + 100)
        other.table = (lm.table + other.table) / 2
        other.name = f"{lm.name}-neighbour"
        return other
    if lm in _originals:
        return _as_gguf(_shake(copy.deepcopy(_originals[lm]), _SPREAD / 8, seed), f"{lm.name}-neighbour")
    if not isinstance(lm, TransformersLM):
        raise ValueError(f"{lm.name} has no neighbour: give the laws a draft model for it")
    return timeless(wrap(_shake(copy.deepcopy(lm.network), _SPREAD / 8, seed), name=f"{lm.name}-neighbour"))


def _shake(model: Any, spread: float, seed: int, keep: float = 1.0) -> Any:
    """Add noise to `keep` times all matrices and biases, sinusoidal tables excepted. The generator is ours: the same
    seed is the same network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and (weight.ndim >= 2 or name.endswith("bias")):
                weight.mul_(keep).add_(torch.randn(weight.shape, generator=generator) * spread)
    return model
