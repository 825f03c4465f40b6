"""Any transformers encoder-decoder as an `LM`: its sequences are the decoder's, and each reads a source of its own.

The source of a request goes through the encoder once, when its sequence is first scored. What the decoder's
cross-attention needs of it, keys and values per layer, is a read-only part of the sequence's past: forks share it, and
nothing commits, rolls back or truncates it. A forward packs trees of many sequences on one token axis as for any other
model (attention.py), through the decoder's own modules; three things are put in their place from outside:
1. attention: over the own past as planned, and in cross-attention each item's rows over its own source,
2. positions: the part that embeds them gives the rows of the true positions, not of the place in the pack,
3. relative position biases: those of the true distances in each tree.
What has to be replaced is found by watching (seq2seq_probe.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from segue.data import CapabilityError, Scores, Want
from segue.models.lm import Ask
from segue.models.sequence import Sequence
from segue.models.transformers.attention import Form, Item, Plan, additive, attend
from segue.models.transformers.kv import KVCache, Layout, Source
from segue.models.transformers.lm import TransformersLM, on_threads

NAME = "segue-seq2seq"
STANDING = 32  # tokens of the source that a sequence without one reads: only measurements have such
TOGETHER = 8192  # source tokens encoded in one call
_KNOWN = {"dropout", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "is_causal"}

# (module, query (B, H, T, d), key (B, G, S, d), value (B, G, S, d'), scale, bias (1, H, T, S)) -> (B, T, H, d')
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
_attends: ContextVar[Attend | None] = ContextVar("segue_seq2seq", default=None)


@contextmanager
def attending(by: Attend) -> Iterator[None]:
    """Within the context, attention of encoder-decoders in this thread is computed by `by`."""
    token = _attends.set(by)
    try:
        yield
    finally:
        _attends.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What is registered with transformers."""
    strange = sorted(k for k, v in others.items() if v is not None and v is not False and k not in _KNOWN)
    if strange or attention_mask is not None:
        what = ", ".join(strange) or "a mask of its own"
        raise CapabilityError(f"its attention passes {what}, which Segue does not know how to honour")
    by = _attends.get()
    if by is None:
        raise CapabilityError(
            "this model is driven by Segue: call it through the LM, or set_attn_implementation('sdpa') to use the "
            "bare transformers model again"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return by(module, query, key, value, scale, position_bias), None


def whole_text(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
) -> Tensor:
    """An encoder's attention: every row sees every row."""
    gqa = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


def nothing(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Zeros: where only what the layers make of a source is of interest."""
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


class Through(Cache):  # type: ignore[misc]
    """A cache that keeps nothing: new keys and values come straight back. `kept` gets what a layer hands in."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        super().__init__(layers=[])
        self.kept = kept

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            self.kept[layer] = key, value
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@dataclass
class Parts:
    """What driving a network from outside needs to know about it; seq2seq_probe.py finds it."""

    network: Any
    cache_name: str  # how its forward calls the cache
    marker: Tensor  # stands for the keys of every cross-attention
    layers: int
    embeds: nn.Module | None = None  # the part whose output is positions only
    places: Tensor | None = None  # (L, D): what it gives by position
    pad: tuple[int, Tensor] | None = None  # a token that it gives other rows
    biases: list[Tensor | None] = field(default_factory=list)  # per layer (H, L): relative bias by distance

    def __post_init__(self) -> None:
        # Layers that find their cross-attention's keys in the cache do not compute any.
        cross = Through()
        cross.layers = [_Kept(self.marker) for _ in range(self.layers)]
        self._cache = EncoderDecoderCache(Through(), cross)
        self._cache.is_updated = dict.fromkeys(range(self.layers), True)
        width = self.network.get_decoder().get_input_embeddings().weight.shape[1]
        like = self.network.get_input_embeddings().weight
        self._encoded = BaseModelOutput(
            last_hidden_state=torch.zeros(1, 1, width, dtype=like.dtype, device=like.device)
        )

    def encode(self, ids: Tensor, start: int) -> list[list[tuple[Tensor, Tensor]]]:
        """Per text of ids (B, S) and decoder layer the cross-attention's keys and values (1, G, S, d)."""
        with attending(whole_text):
            encoded = self.network.get_encoder()(input_ids=ids)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        cache = EncoderDecoderCache(Through(), Through(kept))
        first = torch.full((len(ids), 1), start, device=ids.device)
        with attending(nothing), self._rows_kept(torch.zeros(0, dtype=torch.long)):
            self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded[0]),
                decoder_input_ids=first,
                use_cache=False,
                **{self.cache_name: cache},
            )
        if sorted(kept) != list(range(self.layers)):
            raise CapabilityError(f"{len(kept)} of its {self.layers} decoder layers read the source through a cache")
        texts = range(len(ids))
        return [[(k[i : i + 1], v[i : i + 1]) for k, v in (kept[n] for n in range(self.layers))] for i in texts]

    def decode(self, ids: Tensor, positions: Tensor, keep: Tensor | None, by: Attend, states: bool) -> Any:
        """The network's own output over packed decoder ids (1, T) at positions (T,); logits of the rows `keep` only."""
        with ExitStack() as stack:
            stack.enter_context(attending(by))
            if keep is not None:
                stack.enter_context(self._rows_kept(keep))
            if self.embeds is not None:
                stack.enter_context(self._placed(ids[0], positions))
            return self.network(
                encoder_outputs=self._encoded,
                decoder_input_ids=ids,
                use_cache=False,
                output_hidden_states=states,
                **{self.cache_name: self._cache},
            )

    @contextmanager
    def _rows_kept(self, rows: Tensor) -> Iterator[None]:
        """Only these rows of the decoder's last states go on to the head."""

        def cut(_: nn.Module, __: Any, out: Any) -> Any:
            out.last_hidden_state = out.last_hidden_state[:, rows.to(out.last_hidden_state.device)]
            return out

        hook = self.network.get_decoder().register_forward_hook(cut)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _placed(self, ids: Tensor, positions: Tensor) -> Iterator[None]:
        """Positions are embedded as these."""
        assert self.embeds is not None
        assert self.places is not None
        rows = self.places[positions]
        if self.pad is not None:
            rows = torch.where((ids == self.pad[0])[:, None], self.pad[1][positions], rows)
        # Its own forward does not run: the places of a pack may go beyond its table.
        self.embeds.forward = lambda *_, **__: rows[None]
        try:
            yield
        finally:
            del self.embeds.forward


@dataclass(slots=True)
class _Kept:
    """A layer of a cross-attention's cache."""

    keys: Tensor

    @property
    def values(self) -> Tensor:
        return self.keys


class Pack:
    """The attention of one packed forward."""

    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan, self._parts = plan, parts
        self._masks: dict[tuple[int, int], Tensor] = {}
        readers: dict[int, tuple[Source, list[Item]]] = {}
        for item in plan.items:
            source = item.cache.source
            assert source is not None
            readers.setdefault(id(source), (source, []))[1].append(item)
        self._readers = list(readers.values())

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
    ) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if key is self._parts.marker:
            return self._cross(layer, query, scale)
        table = self._parts.biases[layer]
        if table is None:
            return attend(self._plan, layer, query, key, value, Form(scale))
        return self._biased(layer, query, key, value, scale, table)

    def _cross(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """Every item's rows over its own source; items that share one at once."""
        if len(self._readers) == 1:
            return self._over(self._readers[0][0], layer, query, scale).transpose(1, 2)
        outputs: dict[int, Tensor] = {}
        for source, items in self._readers:
            out = self._over(source, layer, torch.cat([query[:, :, i.start : i.stop] for i in items], 2), scale)
            sizes = [i.stop - i.start for i in items]
            outputs |= {i.start: part for i, part in zip(items, out.split(sizes, 2), strict=True)}
        return torch.cat([outputs[i.start] for i in self._plan.items], 2).transpose(1, 2)

    def _over(self, source: Source, layer: int, query: Tensor, scale: float) -> Tensor:
        assert source.rows is not None
        keys, values = source.rows[layer]
        gqa = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=gqa)

    def _biased(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, table: Tensor) -> Tensor:
        """Self-attention with a bias by distance: the whole past of an item at once, shared pieces included."""
        outputs = []
        for item in self._plan.items:
            if item.attention is not None:
                raise CapabilityError("attention rows of layers with a relative position bias are not given out")
            rows = slice(item.start, item.stop)
            keys, values = item.cache.append(layer, key[:, :, rows], value[:, :, rows])
            if item.cache.shared:
                pieces = [item.cache.piece(piece, layer) for piece in item.cache.shared]
                keys = torch.cat([*(k for k, _ in pieces), keys], 2)
                values = torch.cat([*(v for _, v in pieces), values], 2)
            q, gqa = query[:, :, rows], query.shape[1] != key.shape[1]
            mask = self._bias(item, table, q)
            outputs.append(scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=gqa))
        return torch.cat(outputs, 2).transpose(1, 2)

    def _bias(self, item: Item, table: Tensor, like: Tensor) -> Tensor:
        """(1, H, n, rows) for an item: the bias of every distance, -inf where a node is no ancestor. Layers that have
        one table share it."""
        key = item.start, id(table)
        if key not in self._masks:
            self._masks[key] = distance_bias(item, table, like)
        return self._masks[key]


def distance_bias(item: Item, table: Tensor, like: Tensor) -> Tensor:
    """The bias (1, H, n, rows) of an item from a table (H, L) by distance."""
    n, nodes = item.stop - item.start, len(item.tree)
    depths = torch.tensor(item.tree.depths)
    distances = item.past + depths[-n:, None] - torch.cat([torch.arange(item.past), item.past + depths])[None]
    bias = table[:, distances.clamp(0, table.shape[1] - 1).to(table.device)].to(like.dtype)
    if nodes > 1:
        visible = torch.ones(n, item.past + nodes, dtype=torch.bool)
        visible[:, item.past :] = item.tree.ancestors()[-n:]
        bias = bias + additive(visible, like)
    return bias[None]


class Seq2SeqLM(TransformersLM):
    """An encoder-decoder. Built by seq2seq_probe.py, which also checks that it can be driven."""

    def __init__(
        self, parts: Parts, layout: Layout, start_ids: tuple[int, ...], source_length: int, **options: Any
    ) -> None:
        super().__init__(parts.network, layout, **options)
        self.parts = parts
        self.start_ids = start_ids
        self.source_length = source_length
        self._standing: Source | None = None

    @property
    def bytes_per_token(self) -> int:
        """As for any model, less the encoder."""
        encoder, head = self.network.get_encoder(), self.network.get_output_embeddings()
        others = {id(p) for m in (self.network.get_decoder(), head) for p in m.parameters()}
        own = sum(p.numel() * p.element_size() for p in encoder.parameters() if id(p) not in others)
        own += sum(getattr(m, "weight_bytes", 0) for m in encoder.modules())
        return super().bytes_per_token - own

    def sequence(self) -> Sequence:
        """A sequence over a short stand-in source, for measurements; requests read their own (`reading`)."""
        if self._standing is None or self._standing.rows is None:
            token = next(i for i in range(self.vocab_size) if i not in self.eos_ids)
            self._standing = Source([token] * min(STANDING, self.source_length))
        return self._over(self._standing)

    def reading(self, source: Seq[int]) -> Sequence:
        self.check_prompt(source)
        return self._over(Source(list(source)))

    def _over(self, source: Source) -> Sequence:
        past = KVCache(self.layout)
        past.source = source
        return Sequence(self, past)

    def longest_prompt(self, new: int) -> int:
        return self.source_length

    def check_prompt(self, tokens: Seq[int]) -> None:
        if len(tokens) == 0:
            raise ValueError(f"the source is empty: {self.name} reads a text before it writes one; give some")
        self.check_vocabulary(tokens)
        if len(tokens) > self.source_length:
            raise ValueError(
                f"the source has {len(tokens)} tokens, but the encoder of {self.name} takes {self.source_length}: "
                "shorten it or use a model with a longer context"
            )

    def constraints(self, source: Seq[int], length: int) -> list[Any]:
        """transformers' own processors for what the checkpoint's generation config forces, forbids or penalises.
        `length` is the most tokens that the decoder will have, start tokens included."""
        config = copy.deepcopy(self.network.generation_config)
        if config is None:
            return []
        config.do_sample, config.num_beams, config.max_length = False, 1, length
        ends = sorted(self.eos_ids)
        config._eos_token_tensor = torch.tensor(ends, device=self.device) if ends else None
        read = torch.tensor([list(source)], device=self.device)
        return list(
            self.network._get_logits_processor(
                config, input_ids_seq_length=len(self.start_ids), encoder_input_ids=read, device=str(self.device)
            )
        )

    @torch.inference_mode()
    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        self._encode(source for sequence, _, _ in asks if (source := _source(sequence)) is not None)
        return super().forward(asks)

    def _encode(self, sources: Iterable[Source]) -> None:
        """Encode what was not yet: texts of one length together, since none is padded."""
        lengths: dict[int, list[Source]] = {}
        for source in {id(s): s for s in sources if s.rows is None}.values():
            lengths.setdefault(len(source.ids), []).append(source)
        for length, waiting in lengths.items():
            size = max(1, TOGETHER // length)
            for at in range(0, len(waiting), size):
                group = waiting[at : at + size]
                ids = torch.tensor([s.ids for s in group], device=self.device)
                with on_threads(self.threads_for(ids.numel())):
                    rows = self.parts.encode(ids, self.start_ids[0])
                for source, own in zip(group, rows, strict=True):
                    source.rows = own

    def _call(
        self, ids: list[int], positions: list[int], keep: list[int], items: list[Item], wants: list[Want]
    ) -> tuple[Tensor, Seq[Tensor]]:
        if wants[0].layers is not None:
            raise CapabilityError(f"{self.name} is an encoder-decoder: its layers cannot be chosen")
        rows = None if len(keep) == len(ids) else torch.tensor(keep, dtype=torch.long)
        states = any(w.hidden for w in wants)
        tokens = torch.tensor([ids], device=self.device)
        places = torch.tensor(positions, device=self.device)
        with on_threads(self.threads_for(len(ids))):
            out = self.parts.decode(tokens, places, rows, Pack(Plan(items), self.parts), states)
        return out.logits[0], out.decoder_hidden_states or ()


def _source(sequence: Sequence) -> Source | None:
    assert isinstance(sequence.past, KVCache)
    return sequence.past.source
