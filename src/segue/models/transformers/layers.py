"""Running a model with some of its decoder layers skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from segue.data import CapabilityError


def decoder_layers(network: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers, found by its length: families name it differently."""
    count = network.config.get_text_config().num_hidden_layers
    found = [m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    stacks = [m for m in found if all(any(hasattr(s, "layer_idx") for s in layer.modules()) for layer in m)]
    if not stacks:
        raise CapabilityError(f"no stack of {count} decoder layers found in {type(network).__name__}")
    return stacks[0]


@contextmanager
def skipping(network: PreTrainedModel, layers: tuple[int, ...]) -> Iterator[None]:
    """Within the context only `layers` run; a skipped layer returns its input. Undone on any exit."""
    stack = decoder_layers(network)
    skipped = [layer for i, layer in enumerate(stack) if i not in layers]
    for layer in skipped:
        layer.forward = _passes_through
    try:
        yield
    finally:
        for layer in skipped:
            del layer.forward


def _passes_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
