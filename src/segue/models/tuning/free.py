"""Two-exit tuning (Bae et al. 2023, section 3.2): the first layers learn to say what all of them say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.data import CapabilityError
from segue.models.tuning.base import Tuning, entropy, following

NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")  # as families call the one behind the last layer


@dataclass(frozen=True)
class FreeTuning(Tuning):
    """Cross-entropy at both exits, weighted by their depth, and the states at the shallow one drawn towards those of
    the deeper layer that they are nearest to."""

    kind = "free"
    masks: ClassVar[bool] = False

    exit: int = 0  # layers before the shallow exit; 0: a third
    distil: float = 0.5  # weight of the states' distance

    def __post_init__(self) -> None:
        if self.exit < 0:
            raise ValueError(f"exit={self.exit} is not allowed: a number of layers, or 0 for a third of them")
        if not self.distil >= 0:
            raise ValueError(f"distil={self.distil} is not allowed: at least 0")

    def loss(self, network: Any, ids: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        out = network(input_ids=ids, use_cache=False, output_hidden_states=True)
        states, layers = out.hidden_states, len(out.hidden_states) - 1
        at = self.place(layers)
        labels = following(ids, there)
        shallow = network.get_output_embeddings()(last_norm(network)(states[at]))
        losses = (at * entropy(shallow, labels) + layers * entropy(out.logits, labels)) / (at + layers)
        # The last state is normalised already: it is of another scale.
        deeper = [distance(states[at], state.detach()) for state in states[at + 1 : -1]]
        return losses + self.distil * (torch.stack(deeper).min() if deeper else 0.0)

    def place(self, layers: int) -> int:
        """Layers before the exit, of so many."""
        at = self.exit or max(1, layers // 3)
        if at >= layers:
            raise ValueError(f"exit={at} is not allowed: the model has {layers} layers, and some must be left")
        return at


def distance(states: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference, as a share of the mean square of what is wanted. The plain mean, which is in the paper,
    is a matter of the model's scale: where states are large it drowns the cross-entropies and undoes the model."""
    return F.mse_loss(states, wanted) / wanted.pow(2).mean()


def last_norm(network: Any) -> nn.Module:
    """The norm behind the last layer. CapabilityError where it is not found."""
    for part in (network.base_model, getattr(network.base_model, "decoder", None)):
        for name in NORMS:
            norm = getattr(part, name, None)
            if isinstance(norm, nn.Module):
                return norm
    raise CapabilityError(f"no norm behind the last layer of {type(network).__name__} was found")
