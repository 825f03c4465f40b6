"""A lean step: parts of a loaded network are exchanged for ones that compute the same with fewer operations.

Nothing here goes by a family's name. A candidate is built from what a part holds, both are run on the same inputs
(small and large numbers, first and last positions), and the candidate stays where the results agree:
1. norms: one fused kernel instead of five operations,
2. feed-forward blocks: the gate and up projections as one product,
3. attention: queries, keys and values as one product, rotated together,
4. every other linear layer: the product that is fastest here (linear.py), or quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.transformers.attention import Item, Plan, attend, current_plan, following
from segue.models.transformers.linear import Make, dense_or_packed, is_linear, swap_linears, weight_of
from segue.models.transformers.norm import lean_norm
from segue.models.transformers.parts import Form
from segue.models.transformers.probe import Recorder, positions_and_tree
from segue.models.transformers.quantized import Product

SCALES = (0.05, 1.0, 20.0)  # of the random inputs
GATED = ("gate_proj", "up_proj", "down_proj")
NARROW, SAME_SHARE = (torch.bfloat16, torch.float16), 0.9
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Swapped:
    """How many parts of a network were exchanged."""

    norms: int
    feed_forwards: int
    attentions: int
    linears: int


class LeanFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) with gate and up as one product."""

    def __init__(self, block: Any, make: Make) -> None:
        super().__init__()
        self.gate_up = _joined([block.gate_proj, block.up_proj], make)
        self.down = make(weight_of(block.down_proj), block.down_proj.bias)
        self.act = block.act_fn
        self.weight_bytes = self.gate_up.weight_bytes + self.down.weight_bytes

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


class LeanAttention(nn.Module):
    """Attention whose queries, keys and values are one product and are rotated as one tensor.

    Queries and keys may pass a norm before, over a head or over all of them.
    """

    def __init__(self, block: Any, make: Make, form: Form, kv_heads: int, width: int, rotates: bool) -> None:
        super().__init__()
        self.layer_idx = int(block.layer_idx)
        self.qkv = _joined([block.q_proj, block.k_proj, block.v_proj], make)
        self.o = make(weight_of(block.o_proj), block.o_proj.bias)
        self.weight_bytes = self.qkv.weight_bytes + self.o.weight_bytes
        self.q_norm: Any = getattr(block, "q_norm", None)
        self.k_norm: Any = getattr(block, "k_norm", None)
        self.form, self.rotates = form, rotates
        self.heads, self.kv_heads, self.width = weight_of(block.q_proj).shape[0] // width, kv_heads, width

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor] | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        plan = current_plan()
        rows, turned = hidden_states.shape[1], self.heads + self.kv_heads
        joined = self.qkv(hidden_states).view(rows, turned + self.kv_heads, self.width)
        qk, v = torch.split(joined, [turned, self.kv_heads], 1)
        if self.q_norm is not None:
            qk = self._normed(qk)
        if self.rotates:
            assert position_embeddings is not None
            qk = _rotate(qk, *plan.rotation(position_embeddings))
        q, k = torch.split(qk.transpose(0, 1)[None], [self.heads, self.kv_heads], 1)  # (1, heads, T, d)
        out = attend(plan, self.layer_idx, q, k, v.transpose(0, 1)[None], self.form)
        return self.o(out.reshape(1, rows, -1)), None

    def _normed(self, qk: Tensor) -> Tensor:
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        if self.q_norm.weight.numel() == self.width:
            return torch.cat((self.q_norm(q), self.k_norm(k)), 1)
        rows = len(qk)
        q, k = self.q_norm(q.reshape(rows, -1)), self.k_norm(k.reshape(rows, -1))
        return torch.cat((q.view(rows, -1, self.width), k.view(rows, -1, self.width)), 1)


@torch.no_grad()
def make_lean(network: Any, make: Make = dense_or_packed) -> Swapped:
    """Exchange what can be exchanged in `network`, which is driven by Segue's attention already (probe.py). `make`
    builds the products; where it quantizes, parts are compared with exact products before that."""
    norms = swap_norms(network)
    feed_forwards = _swap(network, lambda part: _lean_feed_forward(part, make), _is_gated)
    attentions = _swap_attentions(network, make)
    return Swapped(norms, feed_forwards, attentions, swap_linears(network, make))


def swap_norms(network: nn.Module) -> int:
    """Exchange the norms of any network; returns how many."""
    return _swap(network, lean_norm, _is_norm)


def _joined(linears: Iterable[Any], make: Make) -> Product:
    """Several linear layers of one input as one product."""
    linears = list(linears)
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
    return make(torch.cat([weight_of(linear) for linear in linears]), bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (T, heads, d); `sin` has its first half negated, so that halves only change places. As many
    roundings as transformers' own form has, so that bfloat16 gives its bits."""
    turned = x if x.shape[-1] == cos.shape[-1] else x[..., : cos.shape[-1]]
    out = (turned * cos).add_(turned.roll(turned.shape[-1] // 2, -1).mul_(sin))
    return out if turned is x else torch.cat((out, x[..., cos.shape[-1] :]), -1)


def _swap(network: nn.Module, exchange: Callable[[Any], nn.Module | None], fits: Callable[[nn.Module], bool]) -> int:
    count = 0
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            other = exchange(part) if fits(part) else None
            if other is not None:
                setattr(parent, name, other)
                count += 1
    return count


def _is_norm(part: nn.Module) -> bool:
    parameters = list(part.named_parameters())
    return [name for name, _ in parameters] == ["weight"] and parameters[0][1].ndim == 1 and not list(part.children())


def _is_gated(part: Any) -> bool:
    names = [name for name, _ in part.named_children() if is_linear(getattr(part, name))]
    return sorted(names) == sorted(GATED) and callable(getattr(part, "act_fn", None))


def _lean_feed_forward(part: Any, make: Make) -> nn.Module | None:
    if (part.gate_proj.bias is None) != (part.up_proj.bias is None):
        return None
    width, weight = weight_of(part.gate_proj).shape[1], part.gate_proj.weight
    source = torch.Generator().manual_seed(0)
    candidate = LeanFeedForward(part, dense_or_packed)
    for scale in SCALES:
        x = (torch.randn(1, 3, width, generator=source) * scale).to(weight)
        if not agree(candidate(x), part(x)):
            return None
    return candidate if make is dense_or_packed else LeanFeedForward(part, make)


@dataclass
class _Call:
    """What an attention was given in one forward, and by whose tree."""

    tree: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def _swap_attentions(network: Any, make: Make) -> int:
    """Watch the attentions at work, then try lean ones on the same inputs, and on much larger ones."""
    parts = {name: part for name, part in network.named_modules() if _is_attention(part)}
    calls: dict[str, list[_Call]] = {name: [] for name in parts}
    forms: dict[int, tuple[Tensor, Tensor, Form]] = {}
    for inputs, tree in positions_and_tree(network):
        hooks = [
            part.register_forward_pre_hook(
                lambda _, a, k, own=calls[name], tree=tree: own.append(_Call(tree, a, k)), with_kwargs=True
            )
            for name, part in parts.items()
        ]
        plan = _plan(network, tree)
        try:
            with following(plan):
                network(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        forms |= plan.seen or {}
    count = 0
    for name, part in parts.items():
        lean = _lean_attention(network, part, calls[name], forms, make)
        if lean is not None:
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, lean)
            count += 1
    return count


def _is_attention(part: Any) -> bool:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    return hasattr(part, "layer_idx") and all(
        isinstance(getattr(part, n, None), nn.Module) and is_linear(getattr(part, n)) for n in names
    )


def _plan(network: Any, tree: Any) -> Plan:
    layers = network.config.get_text_config().num_hidden_layers
    return Plan([Item(Recorder(layers), tree, 0, 0, len(tree))], seen={})


def _lean_attention(
    network: Any, part: Any, calls: list[_Call], forms: dict[int, tuple[Tensor, Tensor, Form]], make: Make
) -> nn.Module | None:
    """The lean form of one attention, or None where none of the forms computes the same."""
    if not calls or part.layer_idx not in forms:
        return None
    key, value, form = forms[part.layer_idx]
    biased = {getattr(part, n).bias is not None for n in ("q_proj", "k_proj", "v_proj")}
    if key.shape[-1] != value.shape[-1] or len(biased) > 1:
        return None
    for rotates in (True, False):
        arguments = (form, key.shape[1], key.shape[-1], rotates)
        candidate = LeanAttention(part, dense_or_packed, *arguments)
        if all(_same(network, candidate, part, call, scale) for call in calls for scale in (1.0, SCALES[-1])):
            return candidate if make is dense_or_packed else LeanAttention(part, make, *arguments)
    return None


def _same(network: Any, candidate: nn.Module, part: nn.Module, call: _Call, scale: float) -> bool:
    """Whether both give the same for one call, its hidden states scaled."""
    arguments, keywords = call.arguments, dict(call.keywords)
    if arguments:
        arguments = (arguments[0] * scale, *arguments[1:])
    else:
        keywords["hidden_states"] = keywords["hidden_states"] * scale
    results = []
    for one in (candidate, part):
        with following(_plan(network, call.tree)):
            try:
                results.append(one(*arguments, **keywords))
            except (RuntimeError, IndexError, TypeError, ValueError, AssertionError):
                return False  # its shapes are not those of this form
    return all(isinstance(r, tuple) and len(r) == 2 and r[1] is None for r in results) and agree(
        results[0][0], results[1][0]
    )


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results differ by rounding only: a narrow number is nearly always the very same."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if theirs.dtype in NARROW and float((ours == theirs).float().mean()) < SAME_SHARE:
        return False
    largest = float(theirs.float().abs().max())
    return float((ours.float() - theirs.float()).abs().max()) <= TOLERANCE[theirs.dtype] * max(largest, 1e-6)
