"""What published formats mean: a drafter's shape, and its weights under our names, from a config.json and weights.

- `mlp_speculator` (foundation-model-stack, vLLM): speculator.{emb,proj,ln,head}.N. Tied stages may be stored once.
- Medusa: N.M.linear are the layers of head N and N.L.weight behind its L layers is its projection; or, in vLLM's
  names, blocks.N.layers.M and lm_heads.N. A layer may lack its bias. The authors' code has one layer stand for all
  layers of a head, which a file may hold once.
- EAGLE-1 and EAGLE-2 (SafeAILab's cnets): fc, and layers.0 of a Llama without its first norm; fusion_fc and transformer
  in the names of speculators. vLLM keeps the layer's numbers in `model`, speculators in `transformer_layer_config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from segue.models.heads.base import DraftNetwork, Shape
from segue.models.heads.eagle import EagleNetwork
from segue.models.heads.layer import BASE
from segue.models.heads.medusa import MedusaHeads
from segue.models.heads.speculator import Speculator

TABLES = ("embed_tokens.weight", "lm_head.weight")  # copies of the base model's own, in EAGLE's files
PLAIN = ("silu", "swish")  # names of the one activation of a SwiGLU

Weights = Mapping[str, Tensor]


def number(config: Mapping[str, Any], *names: str, low: int = 1) -> int:
    """A number of the configuration under the first of these names that it has."""
    value = next((config[name] for name in names if name in config), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{' or '.join(names)} of published heads is {value} in their config.json: at least {low}")
    return value


def speculator(config: Mapping[str, Any], weights: Weights) -> tuple[Shape, dict[str, Tensor]]:
    """The shape, and the weights under our names."""
    named = {name.removeprefix("speculator."): weight for name, weight in weights.items()}
    width, stages = number(config, "emb_dim"), number(config, "n_predict")
    shape = Speculator.shape_type(
        width,
        number(config, "vocab_size"),
        stages=stages,
        inner=number(config, "inner_dim", low=0) or width,
        tied=bool(config.get("tie_weights", False)) and stages > 1,
        scale_input=bool(config.get("scale_input", False)),
    )
    own = 1 if shape.tied else stages
    renamed = {"enter.weight": named["proj.0.weight"]}
    for stage in range(own):
        renamed |= {
            f"embedding.{stage}.weight": named[f"emb.{stage}.weight"],
            f"norm.{stage}.weight": named[f"ln.{stage}.weight"],
            f"norm.{stage}.bias": named[f"ln.{stage}.bias"],
            f"head.{stage}.weight": named[f"head.{stage}.weight"],
        }
    for stage in range(1, 2 if shape.tied else stages):
        renamed[f"go_on.{stage - 1}.weight"] = named[f"proj.{stage}.weight"]
    return shape, renamed


def medusa(config: Mapping[str, Any], weights: Weights) -> tuple[Shape, dict[str, Tensor]]:
    """The shape, and the weights under our names. The widths are those of the weights: the configuration has none."""
    heads = number(config, "medusa_num_heads", "num_heads")
    layers = number(config, "medusa_num_layers", "num_hidden_layers")
    named = {re.sub(r"^medusa_heads?\.", "", name): weight for name, weight in weights.items()}
    renamed = {}
    for head in range(heads):
        usual, other = f"{head}.{layers}.weight", f"lm_heads.{head}.weight"
        out = renamed[f"out.{head}.weight"] = named[other if other in named else usual]
        for layer in range(layers):
            places = [f"{head}.{layer}.linear", f"blocks.{head}.layers.{layer}", f"{head}.0.linear"]
            place = next((place for place in places if f"{place}.weight" in named), places[0])
            own = f"layers.{head * layers + layer}"
            matrix = renamed[f"{own}.weight"] = named[f"{place}.weight"]
            renamed[f"{own}.bias"] = named.get(f"{place}.bias", matrix.new_zeros(len(matrix)))
    vocab_size, width = out.shape
    return MedusaHeads.shape_type(width, vocab_size, heads=heads, layers=layers), renamed


def eagle(config: Mapping[str, Any], weights: Weights) -> tuple[Shape, dict[str, Tensor]]:
    """The shape, and the weights under our names. ValueError where there is more than EAGLE's one layer."""
    numbers, named = layer_of(config), eagle_names(weights)
    layers, activation = numbers.get("num_hidden_layers", 1), numbers.get("hidden_act", PLAIN[0])
    if layers != 1 or activation not in PLAIN:
        raise ValueError(f"an EAGLE drafter of {layers} layers with {activation} is not read: 1 layer with silu is")
    used = set(TABLES)

    def take(name: str) -> Tensor:
        used.add(name)
        return named[name]

    heads, width = number(numbers, "num_attention_heads"), number(numbers, "hidden_size")
    own = "layers.0.self_attn"
    biased = f"{own}.q_proj.bias" in named
    renamed = {"enter.weight": take("fc.weight"), "attention.out.weight": take(f"{own}.o_proj.weight")}
    if "fc.bias" in named:
        renamed["enter.bias"] = take("fc.bias")
    for part in ("weight", "bias") if biased else ("weight",):
        renamed[f"attention.query.{part}"] = take(f"{own}.q_proj.{part}")
        both = [take(f"{own}.{name}_proj.{part}") for name in "kv"]
        renamed[f"attention.keys_and_values.{part}"] = torch.cat(both)
    renamed["norm.weight"] = take("layers.0.post_attention_layernorm.weight")
    for name in ("gate", "up", "down"):
        renamed[f"experts.0.{name}.weight"] = take(f"layers.0.mlp.{name}_proj.weight")
    strange = sorted(name for name in set(named) - used if not name.endswith("rotary_emb.inv_freq"))
    if strange:
        raise ValueError(f"an EAGLE drafter with {strange[0]} is not read: it has one layer with one norm, and no more")
    shape = EagleNetwork.shape_type(
        width,
        number(numbers, "vocab_size"),
        attention_heads=heads,
        inner=number(numbers, "intermediate_size"),
        key_heads=number({"num_key_value_heads": heads} | numbers, "num_key_value_heads"),
        head_size=number({"head_dim": width // heads} | numbers, "head_dim"),
        enter_bias="enter.bias" in renamed,
        attention_bias=biased,
        base=_rotary_base(numbers),
        eps=_real(numbers, "rms_norm_eps", 1e-6),
    )
    return shape, renamed


def layer_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an EAGLE drafter's layer, wherever a configuration has them, without nulls: those are defaults."""
    inner = config.get("transformer_layer_config") or config.get("model")
    return _present(inner if isinstance(inner, Mapping) else {}) | _present(config)


def eagle_names(weights: Weights) -> dict[str, Tensor]:
    """Weights under the names that EAGLE's authors give them."""
    named = {re.sub(r"^(model\.)+", "", name): weight for name, weight in weights.items()}
    theirs = (("fusion_fc.", "fc."), ("transformer.", "layers.0."))  # of speculators
    for old, new in theirs:
        named = {new + name.removeprefix(old) if name.startswith(old) else name: w for name, w in named.items()}
    return named


def _present(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value is not None}


def _real(config: Mapping[str, Any], name: str, usual: float) -> float:
    value = config.get(name, usual)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} of published heads is {value} in their config.json: a number above 0")
    return float(value)


def _rotary_base(numbers: Mapping[str, Any]) -> float:
    """Base of the angles. ValueError where they are scaled, differ by layer, or turn a part of a head only."""
    rope = _present(numbers.get("rope_parameters") or numbers.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    part = rope.get("partial_rotary_factor", numbers.get("partial_rotary_factor", 1.0))
    if kind != "default" or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"an EAGLE drafter with rotary positions {rope} is not read: those of type default are")
    if part != 1.0:
        raise ValueError(f"an EAGLE drafter that rotates {part} of a head is not read: all of it is to turn")
    return _real({**numbers, **rope}, "rope_theta", BASE)


READERS: dict[type[DraftNetwork], Callable[[Mapping[str, Any], Weights], tuple[Shape, dict[str, Tensor]]]] = {
    Speculator: speculator,
    MedusaHeads: medusa,
    EagleNetwork: eagle,
}
