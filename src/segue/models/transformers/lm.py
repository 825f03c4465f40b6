"""Any transformers causal LM as an `LM`: packs, plans, and nothing re-implemented."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from segue.data import CapabilityError, PackedLogits, Scores, Want
from segue.models.cost import Cost, cost_of
from segue.models.lm import LM, Ask
from segue.models.sequence import Sequence
from segue.models.threads import on_threads
from segue.models.transformers.arena import Arena
from segue.models.transformers.attention import Item, Plan, following
from segue.models.transformers.kv import KVCache, Turn
from segue.models.transformers.layers import skipping
from segue.models.transformers.layout import Layout
from segue.models.transformers.probe import look
from segue.models.transformers.quantized import QUANTIZED
from segue.models.transformers.stack import Stack
from segue.models.transformers.turn import find_turn


class TransformersLM(LM):
    """Built by `segue.models.transformers.load.load`, which also checks that the model can do this."""

    def __init__(
        self,
        network: PreTrainedModel,
        layout: Layout,
        *,
        name: str,
        tokenizer: Any,
        context_length: int,
        quantize: str | None = None,
        stack: Stack | None = None,
        alone: bool = False,
        identity: str = "",
    ) -> None:
        super().__init__()
        config = network.config.get_text_config()
        self.network = network
        self._stack = stack
        self._alone = alone
        self._turn: Turn | None = None
        self.layout = layout
        self._arena = Arena(layout)
        self.name = name
        self.identity = identity
        self.tokenizer = tokenizer
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length
        self.layers = len(layout.layers)
        self.tied = bool(config.tie_word_embeddings)
        self.eos_ids = frozenset(i for i in _eos_ids(network) if i < self.vocab_size)  # no row, no end
        self.weight_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
        self.weight_bytes += sum(getattr(m, "weight_bytes", 0) for m in network.modules())
        self.bytes_per_row = layout.bytes_per_row
        self.device = network.get_input_embeddings().weight.device
        self.dtype = network.dtype
        self.width = int(network.get_input_embeddings().weight.shape[1])
        self.backend = "transformers"
        self.precision = quantize or str(network.dtype).removeprefix("torch.")

    @cached_property
    def cost(self) -> Cost:
        """Measured on this machine when first asked for (under three seconds), and remembered."""
        return cost_of(self)

    @property
    def bytes_per_token(self) -> int:
        """Everything, but of an input table that is not the head as well only a row."""
        table, head = self.network.get_input_embeddings(), self.network.get_output_embeddings()
        # A tied head that was packed or quantized has weights of its own, and of the table only a row is read.
        shared = head is None or (self.tied and not hasattr(head, "weight_bytes"))
        return self.weight_bytes - (0 if shared else table.weight.numel() * table.weight.element_size())

    def thread_choices(self) -> tuple[int, ...]:
        most = torch.get_num_threads()
        return (0,) if self.device.type != "cpu" else (1,) if most == 1 else (1, most)

    def facts(self) -> dict[str, Any]:
        config = self.network.config.to_dict()
        config.pop("_name_or_path", None)
        shape = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:24]
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else str(self.device),
            "dtype": str(self.dtype),
            "shape": shape,
            "invariant": self._alone,
            "transformers": transformers.__version__,
            "parts": sorted({type(m).__name__ for m in self.network.modules()}),
        }

    def companion_options(self, path: str) -> dict[str, Any]:
        if path.endswith(".gguf"):
            return {}
        quantize = self.precision if self.precision in QUANTIZED else None
        return {"dtype": self.dtype, "device": str(self.device), "quantize": quantize}

    @cached_property
    def windowed(self) -> frozenset[int]:
        return frozenset(i for i, (_, _, form) in enumerate(look(self.network, 0)) if form.window is not None)

    def kv_heads(self, layer: int) -> int:
        return self.layout.layers[layer].kv_heads

    def embed(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self._table(tokens)
        return rows

    def head(self, states: Tensor) -> Tensor:
        logits: Tensor = self._head(states.to(self.dtype))
        return logits

    @cached_property
    def _table(self) -> Any:
        return self.network.get_input_embeddings()

    @cached_property
    def _head(self) -> Any:
        return self.network.get_output_embeddings()

    def turn(self) -> Turn:
        if self._turn is None:
            self._turn = find_turn(self.network)
        return self._turn

    def sequence(self) -> Sequence:
        return Sequence(self, KVCache(self._arena))

    @torch.inference_mode()  # a seventh faster than no_grad for one row: no version counters
    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        kind, layers = asks[0][2].kind, asks[0][2].layers
        wrong = [i for i in layers or () if not 0 <= i < len(self.layout.layers)]
        if wrong:
            raise ValueError(f"layer {wrong[0]} does not exist: {self.name} has {len(self.layout.layers)} layers")
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        items: list[Item] = []
        for sequence, tree, want in asks:
            if want.kind != kind:
                raise ValueError("one forward runs one set of layers: ask for the others in a forward of their own")
            if want.since and sequence.scored is not tree:
                raise ValueError("only a tree that was scored and not committed yet can be scored on from a node")
            past, start = len(sequence), len(ids)
            if past + 1 > self.context_length:
                raise ValueError(f"the context of {self.name} ({self.context_length} tokens) is full")
            cache = sequence.past
            assert isinstance(cache, KVCache)
            cache.reserve(past, len(tree), layers, want.since)
            ids.extend(tree.tokens[want.since :])
            # Rows that are only read back may reach over the end; a learned position table has no entry there.
            positions.extend(min(past + depth, self.context_length - 1) for depth in tree.depths[want.since :])
            keep.extend(start + node - want.since for node in want.rows(len(tree)))
            items.append(Item(cache, tree, past, start, len(ids), want.since, self._watched(want)))
        wants = [want for _, _, want in asks]
        logits, states = self._call(ids, positions, keep, items, wants)
        for sequence, tree, _ in asks:
            sequence.scored = tree
        return self._split(logits, states, items, wants)

    def _watched(self, want: Want) -> tuple[tuple[int, ...], tuple[int, ...] | None] | None:
        """The layers whose attention is wanted, counted from the front, and the nodes."""
        if want.attention is None:
            return None
        layers, nodes = want.attention
        return tuple(layer % self.layers for layer in layers), nodes

    def _call(
        self, ids: list[int], positions: list[int], keep: list[int], items: list[Item], wants: list[Want]
    ) -> tuple[Tensor, Seq[Tensor]]:
        """Logits of the kept rows (R, V) and, where somebody wants one, the hidden states."""
        layers = wants[0].layers
        states = any(w.hidden for w in wants)
        given = [w.states for w in wants if w.states is not None]
        entering = torch.cat(given)[None].to(self.dtype) if given else None
        everything = len(keep) == len(ids)
        rows = None if everything else torch.tensor(keep, dtype=torch.long, device=self.device)
        tokens = torch.tensor([ids], device=self.device)
        places = torch.tensor([positions], device=self.device)
        with following(Plan(items, self._alone)), on_threads(self.threads_for(len(ids))):
            if self._stack is not None:
                return self._stack(tokens, places, rows, layers, states, entering)
            with skipping(self.network, layers, entering, watch=states) as seen:
                out = self.network(
                    input_ids=tokens,
                    position_ids=places,
                    use_cache=False,
                    logits_to_keep=0 if rows is None else rows,
                    output_hidden_states=states,
                )
        return out.logits[0], [*seen, out.hidden_states[-1]] if states else ()

    def _split(self, logits: Tensor, states: Seq[Tensor], items: list[Item], wants: list[Want]) -> list[Scores]:
        packed = PackedLogits(logits)
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
                if not -len(states) <= layer < len(states):
                    raise CapabilityError(f"hidden state {layer} was asked for; there are {len(states)}")
                mine.hidden[layer] = states[layer][0, item.start : item.stop]
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
