"""Trained heads as others publish them: IBM's MLP speculators, Medusa and EAGLE heads, read as drafters.

A folder of theirs has a config.json and weights (.safetensors, or .bin and .pt). It does not say for which weights it
was trained: what fits a model's width and vocabulary is taken, and drafts for another model are merely not accepted.
EAGLE's files alone may have copies of the model's own tables, and then tell another model. What the formats mean is in
`formats`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.models.heads.base import DraftNetwork, fits, fitted
from segue.models.heads.eagle import EagleNetwork
from segue.models.heads.formats import READERS, TABLES, Weights, eagle_names, layer_of
from segue.models.heads.medusa import MedusaHeads
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM

CONFIG = "config.json"
READ = "mlp_speculator, medusa and eagle"
PROBES = 16  # rows or columns of a table that are compared
ALIKE = 0.25  # of their size at most, by which copies in other precisions differ, quantized ones too


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
        shape, renamed = READERS[cls](config, weights)
        fits(shape, lm)
        if cls is EagleNetwork:
            _check_tables(folder, eagle_names(weights), lm)
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
    # vLLM and speculators say that it is EAGLE; the authors' own files say llama, and are told by their one layer.
    told = [named, config.get("speculators_model_type", ""), *(config.get("architectures") or [])]
    told = [str(name).lower() for name in told]
    if any("eagle3" in name for name in told) or "draft_vocab_size" in config:
        raise ValueError(
            f"{folder} holds an EAGLE-3 drafter, which is not read: it reads the states of three layers and has a "
            "vocabulary of its own; EAGLE-1 and EAGLE-2 are read"
        )
    if any("eagle" in name for name in told) or layer_of(config).get("num_hidden_layers") == 1:
        return EagleNetwork
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


@torch.no_grad()
def _check_tables(folder: Path, named: Weights, lm: LM) -> None:
    """ValueError where a file's copies of a model's tables are not those of `lm`, which alone are used."""
    for name in TABLES:
        theirs = named.get(name)
        if theirs is None:
            continue
        same = theirs.shape == (lm.vocab_size, lm.width)
        if same and name == TABLES[0]:
            places = torch.linspace(0, lm.vocab_size - 1, PROBES, device=lm.device).long()
            mine, theirs = lm.embed(places), theirs[places.cpu()]
        elif same:
            places = torch.linspace(0, lm.width - 1, PROBES, device=lm.device).long()
            one_hot = torch.eye(lm.width, dtype=lm.dtype, device=lm.device)[places]
            mine, theirs = lm.head(one_hot), theirs[:, places.cpu()].T
        if not same or (theirs.float() - mine.float().cpu()).norm() > ALIKE * mine.float().norm().cpu():
            raise ValueError(
                f"the heads in {folder} were trained for another model: their {name} is not that of {lm.name}"
            )
