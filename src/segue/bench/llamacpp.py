"""llama.cpp on the same weights as a contestant: GGUF files written by us, driven token by token."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from segue.data import Settings, Stats
from segue.models.llamacpp.convert import convert
from segue.models.lm import LM

KINDS = ("f16", "q8_0")


@dataclass
class LlamaCpp:
    """Plain decoding of a GGUF file."""

    name: str
    llama: Any
    eos_ids: frozenset[int]
    vocab_size: int

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        self.llama.reset()
        self.llama.eval(prompt)
        source = np.random.default_rng(settings.seed)
        tokens: list[int] = []
        while True:
            tokens.append(self._pick(settings.temperature, source))
            if len(tokens) == settings.max_tokens or (tokens[-1] in self.eos_ids and not settings.ignore_eos):
                return tokens, None
            self.llama.eval(tokens[-1:])

    def _pick(self, temperature: float, source: np.random.Generator) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.llama.ctx, -1), shape=(self.vocab_size,))
        if not temperature:
            return int(logits.argmax())
        return int((logits / temperature + source.gumbel(size=self.vocab_size)).argmax())

    def forget(self) -> None:
        pass


def llamacpp_peers(network: Any, lm: LM) -> list[LlamaCpp]:
    """One for each kind of file. `network`: the bare transformers model; `lm`: ours, for tokenizer and context."""
    peers = []
    with tempfile.TemporaryDirectory(prefix="segue-gguf-") as folder:
        for kind in KINDS:
            path = convert(network, lm.tokenizer, Path(folder) / f"{kind}.gguf", kind)
            threads = torch.get_num_threads()
            llama = llama_cpp.Llama(
                str(path),
                n_ctx=lm.context_length,
                n_threads=threads,
                n_threads_batch=threads,
                use_mmap=False,  # the file is gone after loading
                verbose=False,
            )
            peers.append(LlamaCpp(f"llama.cpp {kind}", llama, lm.eos_ids, lm.vocab_size))
    return peers
