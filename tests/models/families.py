"""Small random models of many families, each with an untouched twin that serves as the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf

from segue.models.transformers.linear import dense_or_packed
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.load import wrap

VOCAB = 97
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOW = 8


def _base(**extra: Any) -> dict[str, Any]:
    return {**BASE, **extra}


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**BASE),
    "llama3-rope": lambda: tf.LlamaConfig(
        **_base(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        )
    ),
    "mistral-window": lambda: tf.MistralConfig(**_base(sliding_window=WINDOW)),
    "mixtral": lambda: tf.MixtralConfig(**_base(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    "qwen2-window": lambda: tf.Qwen2Config(
        **_base(sliding_window=WINDOW, use_sliding_window=True, max_window_layers=1)
    ),
    "qwen3": lambda: tf.Qwen3Config(**_base(head_dim=8)),
    "gemma2": lambda: tf.Gemma2Config(**_base(head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8)),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_base(head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, sliding_window_pattern=2)
    ),
    "phi3": lambda: tf.Phi3Config(**_base(sliding_window=None)),
    "olmo2": lambda: tf.Olmo2Config(**BASE),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.1, eos_token_id=1
    ),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**_base(num_key_value_heads=None)),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        init_std=0.1,
        eos_token_id=1,
    ),
    "gpt-oss": lambda: tf.GptOssConfig(
        **_base(head_dim=8, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2)
    ),
    "granite": lambda: tf.GraniteConfig(**BASE),
    "starcoder2": lambda: tf.Starcoder2Config(**_base(sliding_window=None)),
    "smollm3": lambda: tf.SmolLM3Config(**BASE),
    "stablelm": lambda: tf.StableLmConfig(**BASE),
    "deepseek-v3": lambda: tf.DeepseekV3Config(
        **_base(
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=12,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        )
    ),
    "cohere2": lambda: tf.Cohere2Config(**_base(head_dim=8, sliding_window=WINDOW)),
}


@dataclass(frozen=True)
class Twins:
    """The same weights twice: driven by Segue, and untouched."""

    lm: TransformersLM
    oracle: Any

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """(T, V) of the oracle over one text, by its own eager attention."""
        with torch.no_grad():
            logits: torch.Tensor = self.oracle(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def greedy(self, tokens: list[int], new: int) -> list[int]:
        with torch.no_grad():
            out = self.oracle.generate(
                torch.tensor([tokens]),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=2,
            )
        return [int(t) for t in out[0, len(tokens) :]]


def network(family: str, seed: int = 0) -> Any:
    """A random float32 network; its weights are the same for the same seed."""
    torch.manual_seed(seed)
    net = tf.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]()), attn_implementation="eager")
    return net.eval()


def twins(family: str, seed: int = 0, lean: bool = False) -> Twins:
    make = dense_or_packed if lean else None
    return Twins(wrap(network(family, seed), name=family, make=make), network(family, seed))
