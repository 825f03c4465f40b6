"""Can this encoder-decoder be driven by Segue? Found out by doing, as for causal models (probe.py).

1. The model scores two short texts over two sources by its own attention: the reference.
2. One decoder forward is watched: which part gives positions only, what each layer's attention is handed. A relative
   bias is traced to the module that computes it, and tabulated by distance.
3. The language model made of that scores the same texts as packed trees behind committed prefixes; a difference in
   logits is a capability error. The same again after its linear layers were exchanged.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, EncoderDecoderCache, PreTrainedModel

from segue.data import CapabilityError, DraftTree, Want
from segue.models.transformers.layout import LayerShape, Layout
from segue.models.transformers.lean import swap_norms
from segue.models.transformers.linear import LeanLinear, Make, is_linear
from segue.models.transformers.probe import WAY_OUT, compare
from segue.models.transformers.seq2seq import Seq2SeqLM
from segue.models.transformers.seq2seq_attention import NAME, attending, attention, nothing
from segue.models.transformers.seq2seq_parts import Parts, Through

UNBOUNDED = 4096  # tokens of a source or an output where positions are relative, which have no end
TEXT = 8  # decoder tokens of the comparison
PREFIX = 6  # of them committed first
_FAILURES = (AttributeError, TypeError, RuntimeError, IndexError, KeyError, ValueError, AssertionError)


def wrap_seq2seq(
    network: PreTrainedModel, *, make: Make | None = None, check: bool = True, name: str, **options: Any
) -> Seq2SeqLM:
    """Drive an encoder-decoder. Raises CapabilityError, naming the family and the way out, where that cannot be."""
    family = network.config.model_type
    start_ids = _start_ids(network, family)
    reference = _reference(network, family, start_ids) if check else None
    AttentionInterface.register(NAME, attention)
    try:
        _switch(network, NAME)
        lm = _build(network, start_ids, name, options)
        ours = _ours(lm)  # also where nothing is compared: what cannot be driven is to be told at load
    except CapabilityError as error:
        raise CapabilityError(f"{family}: {error}; {WAY_OUT}") from None
    except _FAILURES as error:
        raise CapabilityError(f"{family} cannot take Segue's packed forward ({error}): {WAY_OUT}") from error
    if reference is not None:
        compare(family, reference, ours, network.dtype)
    if make is not None:
        _make_lean(network, make, lm)
        options |= {"context_length": lm.context_length, "name": name}  # once more, since it counts weights
        lm = Seq2SeqLM(lm.parts, lm.layout, start_ids, lm.source_length, **options)
        if reference is not None and options.get("quantize") is None:
            compare(family, reference, _ours(lm), network.dtype)
    return lm


def _switch(network: PreTrainedModel, implementation: str) -> None:
    """Also of an encoder or decoder with a configuration of its own."""
    for part in network.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation(implementation)


def _start_ids(network: PreTrainedModel, family: str) -> tuple[int, ...]:
    """What transformers' generate starts the decoder with."""
    generation: Any = getattr(network, "generation_config", None)
    for holder in (generation, network.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return (found,)
    raise CapabilityError(f"{family} does not say what its decoder starts with (decoder_start_token_id): {WAY_OUT}")


def _texts(network: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
    """Two sources, each with the tokens that its decoder is given after the start token."""
    size = int(network.config.vocab_size)
    tokens = [(i * 7) % size for i in range(1, TEXT)]
    return [([(i * 5) % size for i in range(1, 6)], tokens), ([(i * 3) % size for i in range(2, 11)], tokens[::-1])]


@torch.no_grad()
def _reference(network: PreTrainedModel, family: str, start_ids: tuple[int, ...]) -> Tensor:
    """Logits (2 * (TEXT - PREFIX + 1), V) by the model's own eager attention, behind the prefix."""
    device = network.get_input_embeddings().weight.device
    rows, kinds = [], [type(m) for m in network.modules()]
    try:
        _switch(network, "eager")
        for source, text in _texts(network):
            ids, decoder_ids = (torch.tensor([t], device=device) for t in (source, [*start_ids, *text]))
            out = network(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False)
            rows.append(out.logits[0, PREFIX - 1 :])
    except _FAILURES as error:
        raise CapabilityError(f"{family} does not run as a text-to-text model ({error}): {WAY_OUT}") from error
    if kinds != [type(m) for m in network.modules()]:
        raise CapabilityError(f"{family} reads short texts with other parts than long ones: {WAY_OUT}")
    if not all(bool(r.isfinite().all()) for r in rows):
        raise ValueError("the model gives NaN or infinite logits on ordinary tokens: its weights are damaged")
    return torch.cat(rows)


@torch.inference_mode()
def _ours(lm: Seq2SeqLM) -> Tensor:
    """The same rows as packed trees in two steps, with a branch beside each that must not be seen."""
    texts = [[*lm.start_ids, *text] for _, text in _texts(lm.network)]
    sequences = [lm.reading(source) for source, _ in _texts(lm.network)]
    heads = lm.forward(
        [(s, DraftTree.chain(t[:PREFIX]), Want(logits="last")) for s, t in zip(sequences, texts, strict=True)]
    )
    trees = []
    for sequence, text, other in zip(sequences, texts, reversed(texts), strict=True):
        sequence.commit(list(range(PREFIX)))
        trees.append(DraftTree.from_paths(text[PREFIX], [other[:1] * 3, text[PREFIX + 1 :]]))
    scores = lm.forward([(s, t, Want()) for s, t in zip(sequences, trees, strict=True)])
    rows = []
    for head, tree, own, text in zip(heads, trees, scores, texts, strict=True):
        path = [0]
        for token in text[PREFIX + 1 :]:
            path.append(next(c for c in tree.children()[path[-1]] if tree.tokens[c] == token))
        rows += [head.logits, own.logits[path]]
    return torch.cat(rows)


@torch.no_grad()
def _build(network: PreTrainedModel, start_ids: tuple[int, ...], name: str, options: dict[str, Any]) -> Seq2SeqLM:
    """The language model, its parts found by watching decoder forwards."""
    if network.get_encoder() is network or network.get_decoder() is network:
        raise CapabilityError("its encoder and decoder are not parts of their own")
    accepted = inspect.signature(network.forward).parameters
    cache_name = "cache" if "cache" in accepted else "past_key_values"
    handed, embeds = _watch(network, cache_name)
    layers = len(handed)
    context = _context(network, embeds)
    shapes = []
    for layer in range(layers):
        key, value, _ = handed[layer]
        if key.shape[2] != PREFIX or key.shape[0] != 1:
            raise CapabilityError(f"layer {layer} attends over {tuple(key.shape)} keys for {PREFIX} tokens")
        shapes.append(LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device))
    marker = handed[0][0][:, :, :1].clone()
    parts = Parts(network, cache_name, marker, layers)
    if embeds is not None:
        parts.embeds, parts.places = embeds, _places(network, cache_name, embeds, context, _ordinary(network)[0])
        pad = getattr(network.config, "pad_token_id", None)
        if isinstance(pad, int):  # some families give it no position
            places = _places(network, cache_name, embeds, context, pad)
            parts.pad = None if torch.equal(places, parts.places) else (pad, places)
    parts.biases = _biases(network, [handed[layer][2] for layer in range(layers)], context)
    source_length = getattr(network.config, "max_encoder_position_embeddings", None) or context
    return Seq2SeqLM(parts, Layout.of(shapes), start_ids, source_length, context_length=context, name=name, **options)


def _watch(network: Any, cache_name: str) -> tuple[dict[int, tuple[Tensor, Tensor, Tensor | None]], nn.Module | None]:
    """What each layer's self-attention is handed (key, value, bias) for a chain of PREFIX tokens, and the part outside
    of the layers that gives the same for any tokens: it embeds positions."""
    handed: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    crossed: set[int] = set()

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        if module.layer_idx in handed:
            crossed.add(module.layer_idx)
        else:
            handed[module.layer_idx] = key, value, bias
        return nothing(module, query, key, value, scale, bias)

    outputs: list[dict[nn.Module, Any]] = []
    for token in _ordinary(network):
        handed.clear()
        gave: dict[nn.Module, Any] = {}
        hooks = [
            part.register_forward_hook(lambda m, _, out, gave=gave: gave.update({m: out})) for part in _outside(network)
        ]
        try:
            with attending(record):
                _decoder_forward(network, cache_name, PREFIX, token)
        finally:
            for hook in hooks:
                hook.remove()
        outputs.append(gave)
    if sorted(handed) != list(range(len(handed))) or crossed != set(handed):
        raise CapabilityError("its decoder layers do not use transformers' attention interface once for each text")
    first, second = outputs
    same = [m for m, out in first.items() if isinstance(out, Tensor) and torch.equal(out, second[m])]
    if len(same) > 1:
        raise CapabilityError(f"{len(same)} parts of its decoder embed positions")
    return handed, same[0] if same else None


def _outside(network: Any) -> list[nn.Module]:
    """The decoder's modules without parts of their own that are in no layer."""
    decoder = network.get_decoder()
    inside = {id(m) for stack in decoder.modules() if isinstance(stack, nn.ModuleList) for m in stack.modules()}
    return [m for m in decoder.modules() if id(m) not in inside and not list(m.children())]


def _ordinary(network: Any) -> list[int]:
    """Two tokens without a special meaning."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    special = {getattr(network.config, name, None) for name in names}
    return [i for i in range(min(int(network.config.vocab_size), 64)) if i not in special][-2:]


def _decoder_forward(network: Any, cache_name: str, length: int, token: int) -> None:
    """One forward of the decoder over one token again and again and a made-up encoding."""
    table = network.get_input_embeddings().weight
    ids = torch.full((1, length), token, device=table.device)
    width = network.get_decoder().get_input_embeddings().weight.shape[1]
    network(
        encoder_outputs=(torch.ones(1, 3, width, dtype=table.dtype, device=table.device),),
        decoder_input_ids=ids,
        use_cache=False,
        **{cache_name: EncoderDecoderCache(Through(), Through())},
    )


class _Enough(Exception):
    """The forward has shown what was to be seen."""


def _places(network: Any, cache_name: str, embeds: nn.Module, length: int, token: int) -> Tensor:
    """(L, D) what the part that embeds positions gives a token at positions 0 to L - 1; the layers do not run."""
    found: list[Tensor] = []

    def stop(_: nn.Module, __: Any, out: Tensor) -> None:
        found.append(out.detach().reshape(length, -1).clone())
        raise _Enough

    hook = embeds.register_forward_hook(stop)
    try:
        _decoder_forward(network, cache_name, length, token)
    except _Enough:
        pass
    except (IndexError, RuntimeError) as error:
        raise CapabilityError(f"its positions end before {length}, which its configuration states ({error})") from None
    finally:
        hook.remove()
    return found[0]


def _context(network: Any, embeds: nn.Module | None) -> int:
    """Tokens that the decoder takes."""
    if embeds is None:
        return UNBOUNDED
    for name in ("max_decoder_position_embeddings", "max_position_embeddings", "n_positions"):
        length = getattr(network.config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    raise CapabilityError("it does not say how long a text it takes (max_position_embeddings)")


def _biases(network: Any, handed: list[Tensor | None], length: int) -> list[Tensor | None]:
    """Per layer the relative position bias (H, L) by distance; None where a layer has none."""
    sources = [m for m in network.get_decoder().modules() if hasattr(m, "compute_bias")]
    tables: dict[int, Tensor] = {}
    found: list[Tensor | None] = []
    for layer, bias in enumerate(handed):
        own = next((m for m in sources if bias is not None and _computes(m, bias)), None)
        if own is None and bias is not None and bool(bias.any()):
            raise CapabilityError(f"layer {layer} is handed a position bias that no part of the decoder computes")
        if own is not None and id(own) not in tables:
            # A row at the end of so many rows sees every distance, the largest first.
            tables[id(own)] = own.compute_bias(1, length, past_seen_tokens=length - 1)[0, :, 0].flip(-1).contiguous()
        found.append(None if own is None else tables[id(own)])
    return found


def _computes(module: Any, bias: Tensor) -> bool:
    """Whether a bias (1, H, n, n) comes from this module."""
    try:
        own: Tensor = module.compute_bias(*bias.shape[-2:])
    except (AttributeError, TypeError, RuntimeError, IndexError):
        return False  # a layer that was given no table of its own
    return own.shape == bias.shape and torch.equal(own, bias)


@torch.no_grad()
def _make_lean(network: Any, make: Make, lm: Seq2SeqLM) -> None:
    """Exchange norms and linear layers as for causal models (lean.py). Whether a kind of block takes another module
    for its linears is tried once per kind: some look at a weight themselves, and keep their own."""
    swap_norms(network)
    kinds: dict[tuple[type, str], list[nn.Module]] = {}
    for parent in network.modules():
        for name, child in parent.named_children():
            if is_linear(child):
                kinds.setdefault((type(parent), name), []).append(parent)
    for (_, name), parents in kinds.items():
        kept = getattr(parents[0], name)
        setattr(parents[0], name, LeanLinear(kept, make))
        try:
            _ours(lm)
        except (AttributeError, TypeError, RuntimeError):
            setattr(parents[0], name, kept)
            continue
        for parent in parents[1:]:
            setattr(parent, name, LeanLinear(getattr(parent, name), make))
