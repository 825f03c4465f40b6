"""Can this transformers model be driven by Segue? Found out by doing, not by a list of names.

At load the model scores a few tokens twice: by its own attention, one text at a time, and as a packed tree in two
steps through ours. What the attention function saw gives the cache layout; a difference in logits is a capability
error. Forms that a short probe cannot exercise (rope types, windows) are checked in the configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from segue.data import CapabilityError, DraftTree
from segue.models.transformers import attention
from segue.models.transformers.arena import Arena
from segue.models.transformers.attention import Item, Plan, following
from segue.models.transformers.kv import KVCache
from segue.models.transformers.layout import LayerShape, Layout
from segue.models.transformers.parts import Form

WAY_OUT = "use it through transformers' own generate, or choose a model of a family with plain attention layers"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
KNOWN_ROPE = {"default", "linear", "yarn", "llama3", "proportional"}
LENGTH_ROPE = {"dynamic", "longrope"}  # frequencies change with the longest position in a batch


def probe(network: PreTrainedModel, check: bool = True) -> tuple[Layout, int]:
    """Switch `network` to Segue's attention; returns its cache layout and the context length it may use.

    Raises CapabilityError, naming the family and the way out, where it cannot be driven.
    """
    family = network.config.model_type
    config = network.config.get_text_config()
    context = _context(family, config)
    _check_layers(family, config)
    tokens = torch.arange(1, 9) * 7 % config.vocab_size
    branch = tokens.flip(0)
    reference = _reference(network, family, tokens, branch) if check else None
    AttentionInterface.register(attention.NAME, attention.attention)
    try:
        network.set_attn_implementation(attention.NAME)
        ours, layout, window = _ours(network, tokens, branch)
    except CapabilityError as error:
        raise CapabilityError(f"{family}: {error}; {WAY_OUT}") from None
    except (AttributeError, TypeError, RuntimeError, IndexError, KeyError, ValueError) as error:
        raise CapabilityError(f"{family} cannot take Segue's packed forward ({error}): {WAY_OUT}") from error
    if reference is not None:
        compare(family, reference, ours, network.dtype)
    return layout, min(context, window or context)


def _context(family: str, config: Any) -> int:
    lengths = [getattr(config, n, None) for n in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")]
    length = next((int(n) for n in lengths if isinstance(n, int) and n > 0), None)
    if length is None:
        raise CapabilityError(f"{family} does not say how long a text it takes (max_position_embeddings): {WAY_OUT}")
    rope = getattr(config, "rope_parameters", None) or {}
    for part in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        kind = part.get("rope_type", part.get("type", "default"))
        if kind in LENGTH_ROPE:
            # Within the original length these are ordinary rotations; beyond it packed texts would change each other.
            original = part.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            length = min(length, int(original or length))
        elif kind not in KNOWN_ROPE:
            known = ", ".join(sorted(KNOWN_ROPE | LENGTH_ROPE))
            raise CapabilityError(f"{family} uses the rotary form {kind!r}; Segue knows {known}: {WAY_OUT}")
    return length


def _check_layers(family: str, config: Any) -> None:
    strange = sorted(set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS)
    if strange:
        raise CapabilityError(
            f"{family} has {', '.join(strange)} layers; Segue keeps a row per token and knows "
            f"{' and '.join(sorted(KNOWN_LAYERS))}: {WAY_OUT}"
        )


def _inputs(network: PreTrainedModel, tokens: Tensor, positions: list[int]) -> dict[str, Tensor]:
    device = network.get_input_embeddings().weight.device
    return {"input_ids": tokens[None].to(device), "position_ids": torch.tensor([positions], device=device)}


@torch.no_grad()
def _reference(network: PreTrainedModel, family: str, tokens: Tensor, branch: Tensor) -> Tensor:
    """Logits (4, V) by the model's own eager attention after tokens[:7], tokens, and two texts that branch off."""
    try:
        network.set_attn_implementation("eager")
        texts = [tokens, torch.cat([tokens[:6], branch[:2]])]
        rows = [network(**_inputs(network, t, list(range(8))), use_cache=False).logits[0, 6:] for t in texts]
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise CapabilityError(f"{family} does not run as a plain causal model ({error}): {WAY_OUT}") from error
    if not all(bool(r.isfinite().all()) for r in rows):
        raise ValueError("the model gives NaN or infinite logits on ordinary tokens: its weights are damaged")
    return torch.cat(rows)


@torch.no_grad()
def _ours(network: PreTrainedModel, tokens: Tensor, branch: Tensor) -> tuple[Tensor, Layout, int | None]:
    """The same rows through ours: a committed prefix of six, then a tree with both continuations. Also the cache
    layout, and a window that bounds the context."""
    count = network.config.get_text_config().num_hidden_layers
    recorder = Recorder(count)
    with following(Plan([Item(recorder, DraftTree.chain(tokens[:6].tolist()), 0, 0, 6)], seen={})) as plan:
        network(**_inputs(network, tokens[:6], list(range(6))), use_cache=False)
    assert plan.seen is not None
    missing = [layer for layer in range(count) if layer not in plan.seen]
    if missing:
        raise CapabilityError(f"layers {missing} do not use transformers' attention interface")
    window = _unseen_window(network, plan.seen)
    shapes = []
    for layer in range(count):
        key, value, _ = plan.seen[layer]
        if key.shape[2] != 6 or key.shape[0] != 1:
            raise CapabilityError(f"layer {layer} attends over {tuple(key.shape)} keys for 6 tokens")
        shapes.append(LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device))
    layout = Layout.of(shapes)
    cache = KVCache(Arena(layout))
    cache.reserve(0, 6, None)
    for layer in range(count):
        cache.append(layer, plan.seen[layer][0], plan.seen[layer][1])
    cache.commit(list(range(6)))
    tree = DraftTree([int(tokens[6]), int(tokens[7])], [-1, 0], [0, 1], [False] * 2, [False] * 2, [1.0] * 2, [""] * 2)
    first = _score(network, cache, tree)
    other = DraftTree.root(int(branch[0]))
    for token in (int(tokens[6]), int(branch[1])):
        other.add(0, token)
    second = _score(network, cache, other)
    return torch.cat([first, second[[0, 2]]]), layout, window


def _score(network: PreTrainedModel, cache: KVCache, tree: DraftTree) -> Tensor:
    cache.reserve(6, len(tree), None)
    inputs = _inputs(network, torch.tensor(tree.tokens), [6 + d for d in tree.depths])
    with following(Plan([Item(cache, tree, 6, 0, len(tree))])):
        logits: Tensor = network(**inputs, use_cache=False).logits
    return logits[0]


@torch.no_grad()
def look(network: PreTrainedModel, position: int) -> list[tuple[Tensor, Tensor, Form]]:
    """What every layer's attention is given of one token that is read alone: key, value (1, G, 1, d) and its form."""
    count = network.config.get_text_config().num_hidden_layers
    plan = Plan([Item(Recorder(count), DraftTree.root(1), 0, 0, 1)], seen={})
    with following(plan):
        network(**_inputs(network, torch.tensor([1]), [position]), use_cache=False)
    assert plan.seen is not None
    return [plan.seen[layer] for layer in range(count)]


def positions_and_tree(network: PreTrainedModel) -> list[tuple[dict[str, Tensor], DraftTree]]:
    """Inputs of short forwards at the start and at the end of the context, with their tree: what an exchanged part is
    tried on."""
    config = network.config.get_text_config()
    tokens = torch.arange(1, 7) * 11 % config.vocab_size
    last = int(getattr(config, "max_position_embeddings", 64)) - 7
    tree = DraftTree.from_paths(int(tokens[0]), [tokens[1:4].tolist(), tokens[4:].tolist()])
    return [(_inputs(network, tokens, [start + d for d in tree.depths]), tree) for start in (0, last)]


class Recorder(KVCache):
    """Stands in for a cache before its layout is known: hands the new rows straight back."""

    def __init__(self, layers: int) -> None:
        super().__init__(Arena(Layout((), (), ())))
        self.lengths = [0] * layers
        self.dropped = [0] * layers

    def append(self, layer: int, keys: Tensor, values: Tensor, since: int = 0) -> tuple[Tensor, Tensor]:
        return keys, values


def _unseen_window(network: PreTrainedModel, seen: dict[int, tuple[Tensor, Tensor, Form]]) -> int | None:
    """A window that the attention never passes, because the family puts it into masks that we do not build: texts are
    kept within it. None where there is none, or where the configuration names one that the family ignores."""
    config = network.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windowed = [layer for layer in seen if kinds is None or kinds[layer] == "sliding_attention"]
    window = getattr(config, "sliding_window", None)
    if all(seen[layer][2].window is not None for layer in windowed):
        return None
    if not isinstance(window, int):
        if kinds is None:
            return None
        raise CapabilityError(f"layer {windowed[0]} is a sliding window of unknown size")
    tokens = torch.arange(1, 9) * 7 % config.vocab_size
    network.set_attn_implementation("eager")
    rows = []
    try:
        for size in (window, 2):
            config.sliding_window = size
            rows.append(network(**_inputs(network, tokens, list(range(8))), use_cache=False).logits[0, -1])
    finally:
        config.sliding_window = window
        network.set_attn_implementation(attention.NAME)
    return None if torch.equal(*rows) else window


def compare(family: str, reference: Tensor, ours: Tensor, dtype: torch.dtype) -> None:
    reference, ours = reference.float(), ours.float()
    scale = max(float(reference.std()), 1e-3)
    difference = float((reference - ours).abs().mean()) / scale
    allowed = 1e-3 if dtype in (torch.float32, torch.float64) else 0.15
    if not difference <= allowed:
        raise CapabilityError(
            f"{family}: its logits through Segue's attention differ by {difference:.2g} standard deviations from its "
            f"own (allowed {allowed}), so it does something there that Segue does not know; {WAY_OUT}"
        )
