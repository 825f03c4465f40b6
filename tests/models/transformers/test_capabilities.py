"""Models that Segue cannot drive are refused at load, with the family's name and a way out; no silent wrong answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from segue.data import CapabilityError
from segue.models.transformers.load import wrap
from tests.models.families import BASE, CONFIGS

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("bloom", lambda: tf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)),
        ("falcon", lambda: tf.FalconConfig(**SMALL, alibi=True)),
        ("mpt", lambda: tf.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, max_seq_len=128)),
        ("mamba", lambda: tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)),
        (
            "qwen3_next",
            lambda: tf.Qwen3NextConfig(
                **{**BASE, "head_dim": 8},
                linear_num_value_heads=2,
                linear_num_key_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                num_experts=2,
                num_experts_per_tok=1,
            ),
        ),
    ],
)
def test_foreign_families_are_refused_by_name(family: str, config: Any) -> None:
    with pytest.raises(CapabilityError, match=family) as caught:
        wrap(build(config()))
    assert "use it through transformers' own generate" in str(caught.value)


def test_a_window_that_only_masks_know_bounds_the_context() -> None:
    config = tf.PhimoeConfig(**{**BASE, "sliding_window": 12}, num_local_experts=2, num_experts_per_tok=1)
    assert wrap(build(config)).context_length == 12


def test_a_sliding_layer_of_unknown_size_is_refused() -> None:
    network = build(CONFIGS["llama"]())
    network.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(CapabilityError, match="layer 1 is a sliding window of unknown size"):
        wrap(network)


def test_a_window_that_the_family_ignores_does_not() -> None:
    config = CONFIGS["llama"]()
    config.sliding_window = 12
    assert wrap(build(config)).context_length == 256


def test_unknown_rope_form() -> None:
    config = CONFIGS["llama"]()
    network = build(config)
    network.config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(CapabilityError, match="rotary form 'spiral'"):
        wrap(network)


def test_length_dependent_rope_is_kept_to_its_original_length() -> None:
    config = tf.LlamaConfig(
        **{**BASE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    )
    assert wrap(build(config)).context_length == 256


def test_a_family_that_does_something_unknown_in_attention_is_caught_by_its_logits() -> None:
    network = build(CONFIGS["llama"]())
    for layer in network.model.layers:
        attention = layer.self_attn
        original = attention.forward

        def doubled(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            out, weights = _original(*args, **kwargs)
            # Differs between the model's own path and ours.
            return (out if _original.__self__.config._attn_implementation == "segue" else out * 2), weights

        attention.forward = doubled
    with pytest.raises(CapabilityError, match="differ by"):
        wrap(network)


def test_damaged_weights_are_named() -> None:
    network = build(CONFIGS["llama"]())
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        wrap(network)


def test_calling_the_network_past_segue_is_refused() -> None:
    lm = wrap(build(CONFIGS["llama"]()))
    with pytest.raises(CapabilityError, match="needs its plan"):
        lm.network(torch.tensor([[3, 4]]))
