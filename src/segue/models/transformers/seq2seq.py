"""Any transformers encoder-decoder as an `LM`: its sequences are the decoder's, and each reads a source of its own.

The source of a request goes through the encoder once, when its sequence is first scored. What the decoder's
cross-attention needs of it, keys and values per layer, is a read-only part of the sequence's past: forks share it, and
nothing commits, rolls back or truncates it. A forward packs trees of many sequences on one token axis as for any other
model (attention.py), through the decoder's own modules; three things are put in their place from outside:
1. attention: over the own past as planned, and in cross-attention each item's rows over its own source,
2. positions: the part that embeds them gives the rows of the true positions, not of the place in the pack,
3. relative position biases: those of the true distances in each tree.
What has to be replaced is found by watching (seq2seq_probe.py); how it is, is in seq2seq_parts.py and
seq2seq_attention.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from segue.data import CapabilityError, Scores, Settings, Want
from segue.models.lm import Ask
from segue.models.sequence import Sequence
from segue.models.threads import on_threads
from segue.models.transformers.attention import Item, Plan
from segue.models.transformers.kv import KVCache, Source, Turn
from segue.models.transformers.layout import Layout
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.seq2seq_parts import Parts

STANDING = 32  # tokens of the source that a sequence without one reads: only measurements have such
TOGETHER = 8192  # source tokens encoded in one call


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
        own: int = sum(p.numel() * p.element_size() for p in encoder.parameters() if id(p) not in others)
        own += sum(getattr(m, "weight_bytes", 0) for m in encoder.modules())
        whole: int = super().bytes_per_token
        return whole - own

    def sequence(self) -> Sequence:
        """A sequence over a short stand-in source, for measurements; requests read their own (`reading`)."""
        if self._standing is None or self._standing.rows is None:
            token = next(i for i in range(self.vocab_size) if i not in self.eos_ids)
            self._standing = Source([token] * min(STANDING, self.source_length))
        return self._over(self._standing)

    def reading(self, source: Seq[int]) -> Sequence:
        self.check_prompt(source)
        return self._over(Source(list(source)))

    @torch.inference_mode()
    def source_states(self, source: Seq[int]) -> Tensor:
        self.check_prompt(source)
        with on_threads(self.threads_for(len(source))):
            return self.parts.states(torch.tensor([list(source)], device=self.device))[0]

    def _over(self, source: Source) -> Sequence:
        past = KVCache(self._arena)
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

    def constraints(self, settings: Settings, source: Seq[int], length: int) -> list[Any]:
        """transformers' own processors for what the checkpoint's generation config forces, forbids or penalises.
        `length` is the most tokens that the decoder will have, start tokens included."""
        config = copy.deepcopy(self.network.generation_config)
        if config is None:
            return []
        config.do_sample, config.num_beams, config.max_length = False, 1, length
        if settings.repetition_penalty != 1:  # instead of its own
            config.repetition_penalty = None
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

    @property
    def windowed(self) -> frozenset[int]:
        return frozenset()  # a decoder with windows fails the probe

    def turn(self) -> Turn:
        raise CapabilityError(f"{self.name} is an encoder-decoder: its keys cannot be moved")

    def _call(
        self, ids: list[int], positions: list[int], keep: list[int], items: list[Item], wants: list[Want]
    ) -> tuple[Tensor, Seq[Tensor]]:
        if wants[0].layers == () and wants[0].states is not None:
            entering = torch.cat([want.states for want in wants if want.states is not None]).to(self.dtype)
            with on_threads(self.threads_for(len(ids))):
                return self.parts.read_out(entering)[keep], ()
        if wants[0].layers is not None or wants[0].states is not None:
            raise CapabilityError(f"{self.name} is an encoder-decoder: its layers cannot be chosen")
        rows = None if len(keep) == len(ids) else torch.tensor(keep, dtype=torch.long)
        states = any(w.hidden for w in wants)
        tokens = torch.tensor([ids], device=self.device)
        places = torch.tensor(positions, device=self.device)
        with on_threads(self.threads_for(len(ids))):
            out = self.parts.decode(tokens, places, rows, Plan(items), states)
        return out.logits[0], out.decoder_hidden_states or ()


def _source(sequence: Sequence) -> Source | None:
    assert isinstance(sequence.past, KVCache)
    return sequence.past.source
