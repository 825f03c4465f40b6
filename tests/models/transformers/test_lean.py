"""Exchanged parts compute what the originals do, and what would compute something else is left alone.

That packed trees through exchanged parts give the logits of each text is tested in test_packed_trees.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segue.data import DraftTree, Want
from segue.models.transformers.lean import Swapped, make_lean
from segue.models.transformers.linear import maker
from segue.models.transformers.load import load, wrap
from segue.models.transformers.norm import lean_norm
from segue.models.transformers.probe import probe
from segue.models.transformers.stack import find_stack
from tests.models.families import CONFIGS, network

ALL = Swapped(norms=7, feed_forwards=3, attentions=3, linears=1)
# What is exchanged in three layers; a family that lacks here would be slow without anybody noticing.
EXPECTED = {
    "llama": (ALL, "residual"),
    "mistral-window": (ALL, "residual"),
    "qwen2-window": (ALL, "residual"),
    "smollm3": (ALL, "residual"),
    "granite": (ALL, "residual"),
    "qwen3": (Swapped(13, 3, 3, 1), "residual"),
    "gemma3": (Swapped(19, 3, 3, 1), None),  # its logits are capped behind the head
    "olmo2": (Swapped(13, 3, 3, 1), "whole"),
    "stablelm": (Swapped(0, 3, 3, 1), "whole"),
    "mixtral": (Swapped(7, 0, 3, 1), "residual"),
    "gpt2": (Swapped(0, 0, 0, 13), None),
}


@pytest.mark.parametrize("family", list(EXPECTED))
def test_what_is_exchanged(family: str) -> None:
    net = network(family)
    probe(net)
    swapped, blocks = EXPECTED[family]
    assert make_lean(net) == swapped
    stack = find_stack(net)
    assert (stack.blocks[0].__name__ if stack else None) == blocks


class Cut(nn.Module):
    """Looks like a gated feed-forward block, but bounds what it passes on."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = block.gate_proj, block.up_proj, block.down_proj
        self.act_fn = block.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-7, 7))


class Tripled(nn.Module):
    """Looks like a norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.norm = norm.weight, norm.variance_epsilon, [norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.norm[0](x)


def test_look_alikes_stay() -> None:
    net = network("llama")
    layer = net.model.layers[1]
    layer.mlp = Cut(layer.mlp)
    layer.input_layernorm = Tripled(layer.input_layernorm)
    attention = net.model.layers[2].self_attn
    forward = attention.forward

    def clipped(hidden_states: torch.Tensor, **others: Any) -> Any:
        return forward(hidden_states=hidden_states.clamp(-9, 9), **others)

    attention.forward = clipped
    probe(net)
    assert make_lean(net) == Swapped(norms=6, feed_forwards=2, attentions=2, linears=1 + 4 + 3)
    assert isinstance(net.model.layers[1].mlp, Cut)
    assert isinstance(net.model.layers[1].input_layernorm, Tripled)


def test_a_network_with_something_behind_its_head_keeps_its_own_forward() -> None:
    net = network("llama")
    forward = net.forward

    def shifted(*arguments: Any, **keywords: Any) -> Any:
        out = forward(*arguments, **keywords)
        out.logits = out.logits + 1e-3
        return out

    net.forward = shifted
    probe(net)
    assert find_stack(net) is None


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2", "stablelm"])
def test_narrow_numbers_keep_nearly_all_bits(family: str) -> None:
    """In bfloat16 the exchanged network differs from the original only where a last bit of float32 tips a rounding."""
    bare, lean = (network(family).to(torch.bfloat16) for _ in range(2))
    first = wrap(bare, name="bare")
    second = wrap(lean, name="lean", make=maker())
    tree = DraftTree.chain(list(range(3, 40)))
    ours, theirs = (lm.forward([(lm.sequence(), tree, Want())])[0].logits for lm in (second, first))
    assert float((ours.float() - theirs.float()).abs().mean() / theirs.float().std()) < 0.01


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in ("gpt-neox",)])
def test_hidden_states_are_those_of_the_network(family: str) -> None:
    bare, lean = wrap(network(family), name="bare"), wrap(network(family), name="lean", make=maker())
    tree = DraftTree.from_paths(3, [(4, 5), (6, 7)])
    want = Want(hidden=(0, 1, -1))
    ours, theirs = (lm.forward([(lm.sequence(), tree, want)])[0] for lm in (lean, bare))
    for layer in want.hidden:
        torch.testing.assert_close(ours.hidden[layer], theirs.hidden[layer], rtol=1e-4, atol=1e-5)


def test_norms_of_other_kinds_are_left_alone() -> None:
    assert lean_norm(nn.LayerNorm(8, bias=False)) is None
    assert lean_norm(nn.Parameter) is None


def test_quantized_models_load_and_say_so() -> None:
    lm = load(quantize="int8")
    assert (lm.backend, lm.precision, lm.dtype) == ("transformers", "int8", load().dtype)
    assert lm.weight_bytes < 0.5 * load(dtype="float32").weight_bytes
    assert load(quantize="int4").precision == "int4"
    with pytest.raises(ValueError, match="choose from int8, int4"):
        load(quantize="int5")
    with pytest.raises(ValueError, match="runs on one CPU"):
        load(quantize="int8", lean=False)
