"""The shape of a Llama-family checkpoint as GGUF metadata, and which of its forms llama.cpp computes the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from segue.models.llamacpp.names import ARCHITECTURES

Array = np.ndarray[Any, np.dtype[np.float32]]


def architecture(config: Any) -> str:
    """GGUF's name for it. Raises ValueError for what llama.cpp would compute otherwise than transformers."""
    name = ARCHITECTURES.get(config.model_type)
    if name is None:
        raise ValueError(
            f"GGUF is written for {', '.join(ARCHITECTURES)} models, and this is {config.model_type}: "
            "use llama.cpp's converter"
        )
    rope = config.rope_parameters
    form = rope.get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    for wrong, what in (
        (form not in ("default", "linear", "llama3"), f"rotary positions of type {form}"),
        (form == "llama3" and name != "llama", "llama3 rotary positions, which GGUF has for Llama only"),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, "rotary positions on a part of each head"),
        (config.hidden_act != "silu", f"the activation {config.hidden_act}"),
        (
            window is not None and sliding and window < config.max_position_embeddings,
            f"a sliding window of {window} tokens in a context of {config.max_position_embeddings}",
        ),
    ):
        if wrong:
            raise ValueError(f"this {config.model_type} model has {what}: it cannot be written to GGUF faithfully")
    return name


def write_header(writer: Any, config: Any) -> None:
    """Everything llama.cpp needs to know besides the weights and the vocabulary."""
    width = head_width(config)
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
    if config.rope_parameters.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_parameters["factor"]))


def rope_factors(config: Any) -> Array | None:
    """(head width / 2,) what llama.cpp divides each rotary frequency by; None where the plain ones are meant."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    width = head_width(config)
    plain = float(config.rope_parameters["rope_theta"]) ** -(np.arange(0, width, 2) / width)
    factors: Array = (plain / scaled.double().numpy()).astype(np.float32)
    return factors


def head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
