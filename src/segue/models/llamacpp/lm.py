"""A GGUF file through llama.cpp as an `LM`: token trees as one batch whose tokens carry several sequence numbers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from segue.data import CapabilityError, DraftTree, PackedLogits, Scores, Want
from segue.models.cost import Cost, cost_of
from segue.models.llamacpp.names import KINDS, LEAVES
from segue.models.llamacpp.past import LlamaPast, Numbers
from segue.models.lm import LM, Ask
from segue.models.sequence import Sequence

BATCH = 2048  # tokens of one call


class LlamaCppLM(LM):
    """Built by `segue.models.llamacpp.load.load`."""

    lacking = frozenset({"hidden states", "attention weights", "a choice of layers", "masks that see each other"})

    def __init__(
        self,
        model: Any,
        context: Any,
        *,
        name: str,
        precision: str,
        context_length: int,
        kv_rows: int,
        bytes_per_row: int,
        tokenizer: Any,
        eos_ids: frozenset[int],
    ) -> None:
        super().__init__()
        self._loaded = Loaded(model, context)
        self._context = context
        self.name, self.backend, self.precision = name, "llama.cpp", precision
        self.tokenizer, self.eos_ids = tokenizer, eos_ids
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context_length, self.kv_rows, self.bytes_per_row = context_length, kv_rows, bytes_per_row
        self.layers = int(llama_cpp.llama_model_n_layer(model))
        self.weight_bytes = llama_cpp.llama_model_size(model)
        self.device = torch.device("cpu")
        self._numbers = Numbers(llama_cpp.llama_get_memory(context), llama_cpp.llama_n_seq_max(context))
        self.most_leaves, self.most_sequences = LEAVES, max(self._numbers.count - LEAVES, 1)
        self._batch = Batch()
        self._on: int = llama_cpp.llama_n_threads(context)  # threads that it computes on now
        self._most = self._on

    @cached_property
    def cost(self) -> Cost:
        """Measured on this machine when first asked for (under three seconds), and remembered."""
        return cost_of(self)

    def thread_choices(self) -> tuple[int, ...]:
        return (1,) if self._most == 1 else (1, self._most)

    def facts(self) -> dict[str, Any]:
        return {"llama.cpp": llama_cpp.__version__, "kv_rows": self.kv_rows, "bytes_per_row": self.bytes_per_row}

    def companion_options(self, path: str) -> dict[str, Any]:
        if path.endswith(".gguf"):
            return {}
        return {"backend": self.backend, "quantize": self.precision if self.precision in KINDS else "f16"}

    @property
    def branches(self) -> int:
        return self._numbers.spare

    def sequence(self) -> Sequence:
        return Sequence(self, LlamaPast(self._numbers))

    def forward(self, asks: Seq[Ask]) -> list[Scores]:
        batch, wants = self._batch, [want for _, _, want in asks]
        for want in wants:
            if reason := self.refusal("this method", want.needs):
                raise CapabilityError(reason)
        batch.clear()
        spans: list[list[int]] = []
        for sequence, tree, want in asks:
            past = sequence.past
            assert isinstance(past, LlamaPast)
            if past.length + 1 > self.context_length:
                raise ValueError(f"the context of {self.name} ({self.context_length} tokens) is full")
            nodes = want.rows(len(tree))
            batch.add(tree, past.length, past.lay(tree), nodes)
            spans.append(nodes)
        self._compute_on(self.threads_for(batch.size) or self._most)
        logits = self._decode(batch, sum(map(len, spans)))
        for sequence, tree, _ in asks:
            sequence.scored = tree
        return self._split(logits, spans, wants)

    def _compute_on(self, threads: int) -> None:
        if threads != self._on:
            llama_cpp.llama_set_n_threads(self._context, threads, threads)
            self._on = threads

    def _decode(self, batch: Batch, rows: int) -> Tensor:
        """Logits (rows, V) of the nodes asked for, in order; a copy, since the next call overwrites them."""
        out = torch.empty(rows, self.vocab_size)
        at = 0
        for start in range(0, batch.size, BATCH):
            part, kept = batch.part(start, min(start + BATCH, batch.size), rows)
            answer = llama_cpp.llama_decode(self._context, part)
            if answer == 1:
                raise MemoryError(f"the cache of {self.name} ({self.kv_rows} rows) is full: load it with more kv_rows")
            if answer:
                raise RuntimeError(f"llama.cpp could not decode a batch of {batch.size} tokens (code {answer})")
            if kept:
                pointer = llama_cpp.llama_get_logits(self._context)
                view = np.ctypeslib.as_array(pointer, shape=(kept, self.vocab_size))
                out[at : at + kept] = torch.from_numpy(view)
                at += kept
        return out

    def _split(self, logits: Tensor, spans: list[list[int]], wants: list[Want]) -> list[Scores]:
        packed = PackedLogits(logits)
        k = max(want.topk for want in wants)
        topk = logits.topk(min(k, self.vocab_size)).indices if k else None
        scores, row = [], 0
        for nodes, want in zip(spans, wants, strict=True):
            mine = Scores(packed, row, nodes)
            if want.topk and topk is not None:
                mine.topk = topk[row : row + len(nodes), : want.topk]
            scores.append(mine)
            row += len(nodes)
        return scores


class Loaded:
    """What llama.cpp holds for a model; freed with the last copy of the LM that uses it."""

    def __init__(self, model: Any, context: Any) -> None:
        # Not when the interpreter ends: pasts may outlive this, and the process gives its memory back.
        weakref.finalize(self, _free, model, context).atexit = False  # type: ignore[misc]  # a property of its class


def _free(model: Any, context: Any) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


class Batch:
    """Arrays that a llama_batch points into; they grow with the largest pack."""

    def __init__(self) -> None:
        self.size = 0
        self._allocate(BATCH)

    def _allocate(self, tokens: int) -> None:
        self._tokens: Any = np.zeros(tokens, np.int32)
        self._positions: Any = np.zeros(tokens, np.int32)
        self._counts: Any = np.ones(tokens, np.int32)
        self._kept: Any = np.zeros(tokens, np.int8)
        self._owners: Any = np.zeros((tokens, LEAVES), np.int32)
        start, step = self._owners.ctypes.data, self._owners.strides[0]
        self._pointers = (start + step * np.arange(tokens, dtype=np.uint64)).astype(np.uint64)
        self._whole = self._struct(0, 0)

    def clear(self) -> None:
        self.size = 0

    def add(self, tree: DraftTree, past: int, owners: list[list[int]], nodes: list[int]) -> None:
        """A tree on top of `past` rows, the sequence numbers of its nodes, and the nodes whose logits are wanted."""
        start, count = self.size, len(tree)
        if start + count > len(self._tokens):
            self._grow(start + count)
        end = start + count
        self._tokens[start:end] = tree.tokens
        self._positions[start:end] = tree.depths
        self._positions[start:end] += past
        self._kept[start:end] = 0
        if nodes:
            self._kept[start:end][nodes] = 1
        if tree.is_chain:
            self._counts[start:end] = 1
            self._owners[start:end, 0] = owners[0][0]
        else:
            for row, numbers in enumerate(owners, start=start):
                self._counts[row] = len(numbers)
                self._owners[row, : len(numbers)] = numbers
        self.size = end

    def _grow(self, tokens: int) -> None:
        old = (self._tokens, self._positions, self._counts, self._kept, self._owners)
        self._allocate(2 * tokens)
        for ours, theirs in zip(
            (self._tokens, self._positions, self._counts, self._kept, self._owners), old, strict=True
        ):
            ours[: len(theirs)] = theirs

    def part(self, start: int, end: int, rows: int) -> tuple[Any, int]:
        """The llama_batch of tokens [start, end), and how many of the `rows` of logits it gives."""
        if start:
            return self._struct(start, end), int(self._kept[start:end].sum())
        self._whole.n_tokens = end
        return self._whole, rows if end == self.size else int(self._kept[:end].sum())

    def _struct(self, start: int, end: int) -> Any:
        found = llama_cpp.llama_batch()
        found.n_tokens = end - start
        found.token = _at(self._tokens, start, llama_cpp.llama_token)
        found.pos = _at(self._positions, start, llama_cpp.llama_pos)
        found.n_seq_id = _at(self._counts, start, ctypes.c_int32)
        found.seq_id = _at(self._pointers, start, ctypes.POINTER(llama_cpp.llama_seq_id))
        found.logits = _at(self._kept, start, ctypes.c_int8)
        return found


def _at(array: Any, start: int, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data + start * array.itemsize, ctypes.POINTER(kind))
