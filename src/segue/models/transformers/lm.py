"""Any transformers causal LM as an `LM`: packs, plans, and nothing re-implemented."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from segue.data import CapabilityError, PackedLogits, Scores, Want
from segue.models.cost import Cost, cost_of
from segue.models.lm import LM, Ask
from segue.models.sequence import Sequence
from segue.models.transformers.attention import Item, Plan, following
from segue.models.transformers.kv import KVCache, Layout
from segue.models.transformers.layers import skipping


class TransformersLM(LM):
    """Built by `segue.models.transformers.load.load`, which also checks that the model can do this."""

    def __init__(
        self, network: PreTrainedModel, layout: Layout, *, name: str, tokenizer: Any, context_length: int
    ) -> None:
        super().__init__()
        config = network.config.get_text_config()
        self.network = network
        self.layout = layout
        self.name = name
        self.tokenizer = tokenizer
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length
        self.eos_ids = _eos_ids(network)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
        self.bytes_per_row = layout.bytes_per_row
        self.device = network.get_input_embeddings().weight.device
        self.dtype: torch.dtype = network.dtype

    @cached_property
    def cost(self) -> Cost:
        """Measured on this machine when first asked for (under three seconds), and remembered."""
        return cost_of(self)

    def sequence(self) -> Sequence:
        return Sequence(self, KVCache(self.layout))

    @torch.inference_mode()  # a seventh faster than no_grad for one row: no version counters
    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        layers = asks[0][2].layers
        wrong = [i for i in layers or () if not 0 <= i < len(self.layout.layers)]
        if wrong:
            raise ValueError(f"layer {wrong[0]} does not exist: {self.name} has {len(self.layout.layers)} layers")
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        items: list[Item] = []
        for sequence, tree, want in asks:
            if want.layers != layers:
                raise ValueError("one forward runs one set of layers: ask for the others in a forward of their own")
            past, start = len(sequence), len(ids)
            if past + 1 > self.context_length:
                raise ValueError(f"the context of {self.name} ({self.context_length} tokens) is full")
            cache = sequence.past
            assert isinstance(cache, KVCache)
            cache.reserve(past, len(tree), layers)
            ids.extend(tree.tokens)
            # Rows that are only read back may reach over the end; a learned position table has no entry there.
            positions.extend(min(past + depth, self.context_length - 1) for depth in tree.depths)
            keep.extend(start + node for node in want.rows(len(tree)))
            items.append(Item(cache, tree, past, start, len(ids), want.attention))
        out = self._call(ids, positions, keep, items, [want for _, _, want in asks])
        for sequence, tree, _ in asks:
            sequence.scored = tree
        return self._split(out, keep, items, [want for _, _, want in asks])

    def _call(self, ids: list[int], positions: list[int], keep: list[int], items: list[Item], wants: list[Want]) -> Any:
        layers = wants[0].layers
        everything = len(keep) == len(ids)
        skipped = skipping(self.network, layers) if layers is not None else nullcontext()
        with following(Plan(items)), skipped:
            return self.network(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                logits_to_keep=0 if everything else torch.tensor(keep, dtype=torch.long, device=self.device),
                output_hidden_states=any(w.hidden for w in wants),
            )

    def _split(self, out: Any, keep: list[int], items: list[Item], wants: list[Want]) -> list[Scores]:
        packed = PackedLogits(out.logits[0])
        k = max(w.topk for w in wants)
        topk = packed.logits.topk(min(k, self.vocab_size)).indices if k else None
        scores = []
        row = 0
        for item, want in zip(items, wants, strict=True):
            nodes = want.rows(len(item.tree))
            mine = Scores(packed, row, nodes, attention=item.weights)
            if want.topk and topk is not None:
                mine.topk = topk[row : row + len(nodes), : want.topk]
            for layer in want.hidden:
                if not -len(out.hidden_states) <= layer < len(out.hidden_states):
                    raise CapabilityError(f"hidden state {layer} was asked for; there are {len(out.hidden_states)}")
                mine.hidden[layer] = out.hidden_states[layer][0, item.start : item.stop]
            scores.append(mine)
            row += len(nodes)
        return scores


def _eos_ids(network: PreTrainedModel) -> frozenset[int]:
    generation = getattr(network, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = network.config.get_text_config().eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else [int(i) for i in ids])
