"""What a model is made of, in the numbers that decide its latency."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from segue.models.lm import LM
from segue.models.transformers.layers import decoder_layers
from segue.models.transformers.lm import TransformersLM


@dataclass(frozen=True)
class Shape:
    """Depth, width, and parameters with and without what stands around the layers."""

    layers: int
    width: int
    parameters: int
    layer_parameters: int  # of the decoder layers alone: without embeddings, last norm and head


def shape_of(lm: LM) -> Shape | None:
    """The shape of a transformers model; None for another backend, which does not tell.

    Counted on a network without memory built from the config: in the loaded one, lean parts hold their weights packed,
    and a tied head may be there twice.
    """
    if not isinstance(lm, TransformersLM):
        return None
    config = copy.deepcopy(lm.network.config)
    with torch.device("meta"):
        twin = type(lm.network)(config)
    text = config.get_text_config()
    return Shape(
        int(text.num_hidden_layers),
        int(text.hidden_size),
        sum(p.numel() for p in twin.parameters()),
        sum(p.numel() for p in decoder_layers(twin).parameters()),
    )
