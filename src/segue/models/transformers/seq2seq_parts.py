"""An encoder-decoder's network driven from outside: its encoder, and its decoder over a pack. No part is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from segue.data import CapabilityError
from segue.models.transformers.attention import Plan
from segue.models.transformers.seq2seq_attention import Pack, attending, nothing, whole_text


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
    _beside: list[None] | None = None  # stands for what its layers give beside their state; None: not known yet

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

    def states(self, ids: Tensor) -> Tensor:
        """(B, S, D) the encoder's last states of texts (B, S)."""
        with attending(whole_text):
            found: Tensor = self.network.get_encoder()(input_ids=ids)[0]
        return found

    def encode(self, ids: Tensor, start: int) -> list[list[tuple[Tensor, Tensor]]]:
        """Per text of ids (B, S) and decoder layer the cross-attention's keys and values (1, G, S, d)."""
        encoded = self.states(ids)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        cache = EncoderDecoderCache(Through(), Through(kept))
        first = torch.full((len(ids), 1), start, device=ids.device)
        with attending(nothing), self._rows_kept(torch.zeros(0, dtype=torch.long)):
            self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                decoder_input_ids=first,
                use_cache=False,
                **{self.cache_name: cache},
            )
        if sorted(kept) != list(range(self.layers)):
            raise CapabilityError(f"{len(kept)} of its {self.layers} decoder layers read the source through a cache")
        texts = range(len(ids))
        return [[(k[i : i + 1], v[i : i + 1]) for k, v in (kept[n] for n in range(self.layers))] for i in texts]

    def decode(self, ids: Tensor, positions: Tensor, keep: Tensor | None, plan: Plan, states: bool) -> Any:
        """The network's own output over packed decoder ids (1, T) at positions (T,); logits of the rows `keep` only."""
        with ExitStack() as stack:
            stack.enter_context(attending(Pack(plan, self.marker, self.biases)))
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

    def read_out(self, states: Tensor) -> Tensor:
        """Logits (n, V) of states (n, D) as if a last layer had given them: no layer runs, what comes behind does."""
        layers = decoder_layers(self.network.get_decoder(), self.layers)
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        given: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(attending(nothing))
            if self._beside is None:  # what a layer gives beside its state is of no use here, but has to be there
                hook = layers[-1].register_forward_hook(lambda _m, _a, out: given.append(out))
                stack.callback(hook.remove)
                self._run(ids)
                self._beside = [None] * (len(given[0]) - 1) if isinstance(given[0], tuple) else []
            out = (states[None], *self._beside) if self._beside else states[None]
            for layer in layers:
                layer.forward = lambda *_, **__: out
                stack.callback(layer.__dict__.pop, "forward")
            logits: Tensor = self._run(ids).logits[0]
        return logits

    def _run(self, ids: Tensor) -> Any:
        return self.network(
            encoder_outputs=self._encoded, decoder_input_ids=ids, use_cache=False, **{self.cache_name: self._cache}
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


def decoder_layers(decoder: nn.Module, count: int) -> nn.ModuleList:
    """A decoder's list of layers."""
    found = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise CapabilityError(f"its decoder has no list of {count} layers")
    return found[0]


@dataclass(slots=True)
class _Kept:
    """A layer of a cross-attention's cache."""

    keys: Tensor

    @property
    def values(self) -> Tensor:
        return self.keys
