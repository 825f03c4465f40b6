"""A network's forward as the bare chain of its parts: embedding, layers, last norm, head.

transformers' own forward spends a third of a small model's step around the layers: outputs, hooks, masks that we do not
use. The chain is found by watching one forward, and it is used where it gives that forward's logits and states, at the
start and at the end of the context; else the network's own forward stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.transformers.attention import Item, Plan, following
from segue.models.transformers.layers import decoder_layers
from segue.models.transformers.probe import Recorder, positions_and_tree

Block = Callable[[Tensor, Any], Tensor]  # hidden (1, T, D) and rotary positions -> hidden


@dataclass(frozen=True)
class Stack:
    """The chain. `rotary` is None where the layers get no rotary positions."""

    embed: Callable[[Tensor], Tensor]
    rotary: Callable[..., Any] | None
    blocks: list[Block]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        keep: Tensor | None,
        layers: Sequence[int] | None,
        states: bool,
        entering: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (rows, V) of the rows `keep` (all where None) of ids (1, T), and the hidden states where wanted. Only
        `layers` run; the first of them is given `entering` (1, T, D) instead of the embeddings."""
        hidden = self.embed(ids) if entering is None else entering
        turns = self.rotary(hidden, position_ids=positions) if self.rotary is not None else None
        seen = [hidden]
        for block in self.blocks if layers is None else [self.blocks[i] for i in layers]:
            hidden = block(hidden, turns)
            if states:
                seen.append(hidden)
        if states:  # of a norm every row is its own
            hidden = self.norm(hidden)
            seen.append(hidden)
            return self.head(hidden if keep is None else hidden[:, keep])[0], seen
        return self.head(self.norm(hidden if keep is None else hidden[:, keep]))[0], seen


@torch.no_grad()
def find_stack(network: Any) -> Stack | None:
    """The chain of a network that is driven by Segue's attention, or None where its forward is more than that."""
    try:
        layers = list(decoder_layers(network))
        watched = [_watch(network, layers, inputs, tree) for inputs, tree in positions_and_tree(network)]
        stack = _build(network, layers, watched[0])
        same = stack is not None and all(_same(stack, layers, one) for one in watched)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return None  # parts that want more than the chain hands on
    return stack if same else None


@dataclass
class _Watched:
    """One forward: its inputs, what it gave, and what each layer was given and gave."""

    inputs: dict[str, Tensor]
    tree: Any
    logits: Tensor
    given: list[tuple[Tensor, dict[str, Any]]]
    gave: list[Any]
    called: list[nn.Module]  # modules without layers inside, in the order in which they ran


def _watch(network: Any, layers: list[nn.Module], inputs: dict[str, Tensor], tree: Any) -> _Watched:
    one = _Watched(inputs, tree, torch.empty(0), [], [], [])

    def layer_hook(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> None:
        one.given.append((arguments[0] if arguments else keywords["hidden_states"], keywords))
        one.gave.append(out)

    inside = {id(m) for layer in layers for m in layer.modules()}
    outer = [m for m in network.modules() if id(m) not in inside and not list(m.children())]
    rotary = [m for m in network.modules() if id(m) not in inside and "rotary" in type(m).__name__.lower()]
    hooks = [layer.register_forward_hook(layer_hook, with_kwargs=True) for layer in layers]
    hooks += [m.register_forward_hook(lambda m, *_: one.called.append(m)) for m in {*outer, *rotary}]
    try:
        with following(_plan(layers, tree)):
            one.logits = network(**inputs, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return one


def _plan(layers: list[nn.Module], tree: Any) -> Plan:
    return Plan([Item(Recorder(len(layers)), tree, 0, 0, len(tree))])


def _build(network: Any, layers: list[nn.Module], one: _Watched) -> Stack | None:
    """The chain that the modules called outside of the layers suggest: embedding, perhaps rotary, norm, head."""
    outputs = [out[0] if isinstance(out, tuple) else out for out in one.gave]
    chained = all(after is before for before, (after, _) in zip(outputs[:-1], one.given[1:], strict=True))
    if len(one.given) != len(layers) or not chained:
        return None
    rotary = [m for m in one.called if "rotary" in type(m).__name__.lower()]
    others = [m for m in one.called if m not in rotary]
    if len(others) != 3 or len(rotary) > 1:
        return None
    embed, norm, head = others
    positions = [keywords.get("position_embeddings") for _, keywords in one.given]
    if any(p is not positions[0] for p in positions) or (positions[0] is None) != (not rotary):
        return None
    blocks = []
    for layer, (before, keywords), after in zip(layers, one.given, one.gave, strict=True):
        with following(_plan(layers, one.tree)):
            blocks.append(_block(layer, before, keywords.get("position_embeddings"), after))
    return Stack(embed.forward, rotary[0].forward if rotary else None, blocks, norm.forward, head.forward)


def _block(layer: Any, before: Tensor, turns: Any, after: Any) -> Block:
    """A layer as two residual branches where that is what it computes, else the layer's own forward."""
    branches = [child for _, child in layer.named_children()]
    names = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    if len(branches) == 4 and all(hasattr(layer, name) for name in names):
        first, attention, second, feed_forward = (getattr(layer, name).forward for name in names)

        def residual(hidden: Tensor, turns: Any) -> Tensor:
            hidden = hidden + attention(first(hidden), turns)[0]
            return hidden + feed_forward(second(hidden))  # type: ignore[no-any-return]

        try:
            if isinstance(after, Tensor) and torch.equal(residual(before, turns), after):
                return residual
        except (RuntimeError, TypeError, ValueError):
            pass  # its parts want other arguments

    def whole(hidden: Tensor, turns: Any) -> Tensor:
        out: Any = layer.forward(hidden, position_embeddings=turns) if turns is not None else layer.forward(hidden)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first

    return whole


def _same(stack: Stack, layers: list[nn.Module], one: _Watched) -> bool:
    """The same parts in the same order give the same bits, unless something happens between them."""
    with following(_plan(layers, one.tree)):
        logits, _ = stack(one.inputs["input_ids"], one.inputs["position_ids"], None, None, False)
    return logits.dtype == one.logits.dtype and torch.equal(logits, one.logits)
