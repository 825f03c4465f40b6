"""Running a model with some of its decoder layers skipped, or from the middle on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
def skipping(
    network: PreTrainedModel, layers: tuple[int, ...] | None, entering: Tensor | None = None, *, watch: bool = False
) -> Iterator[list[Tensor]]:
    """Within the context only `layers` run (all where None); a skipped layer returns its input. What enters the first
    layer is `entering` (1, T, D) where given, whatever the network does to its embeddings. Undone on any exit.

    Gives a list that a watched forward fills: what entered the first layer that runs, then the output of each of them.
    """
    seen: list[Tensor] = []
    if layers is None and entering is None and not watch:
        yield seen
        return
    stack = list(decoder_layers(network))
    with ExitStack() as undo:
        # Whether it runs or not: the states pass through the first layer of the list.
        undo.callback(stack[0].register_forward_pre_hook(_enter(entering, seen, watch), with_kwargs=True).remove)
        for number, layer in enumerate(stack):
            if layers is not None and number not in layers:
                layer.forward = _passes_through
                undo.callback(layer.__dict__.pop, "forward")
            elif watch:
                undo.callback(layer.register_forward_hook(lambda _m, _a, out: seen.append(_first(out))).remove)
        yield seen


def _enter(entering: Tensor | None, seen: list[Tensor], watch: bool) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        if entering is not None:
            hidden = entering
        if watch:
            seen.append(hidden)
        return ((hidden, *arguments[1:]), keywords) if arguments else ((), keywords | {"hidden_states": hidden})

    return hook


def _first(out: Any) -> Tensor:
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first


def _passes_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
