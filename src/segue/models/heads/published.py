"""Trained heads as others publish them: IBM's MLP speculators and Medusa heads, read as drafters of ours.

A folder of theirs has a config.json and weights (.safetensors, or .bin and .pt). It does not say for which weights it
was trained: what fits a model's width and vocabulary is taken, and drafts for another model are merely not accepted.

- `mlp_speculator` (foundation-model-stack, vLLM): speculator.{emb,proj,ln,head}.N. Tied stages may be stored once.
- Medusa: N.M.linear are the layers of head N and N.L.weight behind its L layers is its projection; or, in vLLM's
  names, blocks.N.layers.M and lm_heads.N. A layer may lack its bias. The authors' code has one layer stand for all
  layers of a head, which a file may hold once.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.models.heads.base import DraftNetwork, Shape, fits, fitted
from segue.models.heads.medusa import MedusaHeads
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM

CONFIG = "config.json"
READ = "mlp_speculator and medusa"

Weights = Mapping[str, Tensor]


def found(folder: Path) -> bool:
    """Whether a folder may hold published heads."""
    return (folder / CONFIG).is_file()


def load(folder: Path, kind: str, lm: LM) -> DraftNetwork:
    """The heads of a folder as a drafter of that kind. ValueError where they are none, do not fit `lm`, or are damaged:
    it names the format, or the numbers."""
    config = _config(folder)
    cls = _network(folder, config)
    if cls.kind != kind:
        raise ValueError(f"{folder} holds heads for {cls.kind}, not for {kind}: choose --method {cls.kind}")
    weights = _weights(folder)
    try:
        shape, renamed = (_speculator if cls is Speculator else _medusa)(config, weights)
        fits(shape, lm)
        with torch.device("meta"):
            network = cls.of(shape)
        network.load_state_dict(renamed, assign=True)
    except KeyError as error:
        raise ValueError(f"the heads in {folder} are incomplete: {error.args[0]} is missing") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the heads in {folder} are not what their {CONFIG} says: {reason}") from None
    network.facts = {"published": folder.name}
    return fitted(network, lm)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CONFIG).read_text()))
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({type(error).__name__}): copy the heads again") from None


def _network(folder: Path, config: Mapping[str, Any]) -> type[DraftNetwork]:
    """Of the format that a configuration tells."""
    named = str(config.get("model_type", "none"))
    if named == "mlp_speculator":
        return Speculator
    if named == "medusa" or "medusa_num_heads" in config:
        return MedusaHeads
    # EAGLE's files say llama and tell themselves by their architecture; vLLM's speculators say which they are.
    told = [named, config.get("speculators_model_type", ""), *(config.get("architectures") or [])]
    if any("eagle" in str(name).lower() for name in told):
        raise ValueError(f"{folder} holds an EAGLE drafter, which is not read: published formats are {READ}")
    raise ValueError(
        f"{folder} holds no published heads of a format that is read ({READ}): its model_type is {named!r}"
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    """Of all files of the folder, by their published names."""
    files = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
    if not files:
        raise ValueError(f"{folder} has a {CONFIG} but no weights (.safetensors, .bin, .pt)")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            safe = file.suffix == ".safetensors"
            weights |= load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}): copy the heads again") from None
    return weights


def _number(config: Mapping[str, Any], *names: str, low: int = 1) -> int:
    """A number of the configuration under the first of these names that it has."""
    value = next((config[name] for name in names if name in config), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{' or '.join(names)} of published heads is {value} in their {CONFIG}: at least {low}")
    return value


def _speculator(config: Mapping[str, Any], weights: Weights) -> tuple[Shape, dict[str, Tensor]]:
    """The shape, and the weights under our names."""
    named = {name.removeprefix("speculator."): weight for name, weight in weights.items()}
    width, stages = _number(config, "emb_dim"), _number(config, "n_predict")
    shape = Speculator.shape_type(
        width,
        _number(config, "vocab_size"),
        stages=stages,
        inner=_number(config, "inner_dim", low=0) or width,
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


def _medusa(config: Mapping[str, Any], weights: Weights) -> tuple[Shape, dict[str, Tensor]]:
    """The shape, and the weights under our names. The widths are those of the weights: the configuration has none."""
    heads = _number(config, "medusa_num_heads", "num_heads")
    layers = _number(config, "medusa_num_layers", "num_hidden_layers")
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
