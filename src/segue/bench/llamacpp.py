"""llama.cpp on the same weights as contestants: GGUF files written by us, plain and with the drafts of its package."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llama_cpp
import numpy as np
import torch
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from segue.data import Settings, Stats
from segue.models.llamacpp.convert import convert
from segue.models.llamacpp.load import model_options
from segue.models.lm import LM

KINDS = ("f16", "q8_0")
LOOKUP_TOKENS = 10  # the package's default
DRAFT_TOKENS = 5
SLACK = 32  # positions for drafts that run over the end


@dataclass
class LlamaCpp:
    """Plain decoding of a GGUF file, driven token by token."""

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


@dataclass
class Drafted:
    """`Llama.generate`, the package's own loop, with a drafter."""

    name: str
    llama: Any
    eos_ids: frozenset[int]

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        self.llama.reset()  # what the prompts before left in the cache would be a head start
        self.llama.set_seed(settings.seed)
        tokens: list[int] = []
        plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        for token in self.llama.generate(prompt, temp=settings.temperature, **plain):
            tokens.append(int(token))
            if len(tokens) == settings.max_tokens or (tokens[-1] in self.eos_ids and not settings.ignore_eos):
                break
        return tokens, None

    def forget(self) -> None:
        pass


class Small(LlamaDraftModel):  # type: ignore[misc]
    """A second model as the drafter: the package has the place for one, but none to put there."""

    def __init__(self, llama: Any) -> None:
        self.llama = llama

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        """Its greedy continuation; what it has read before it does not read again."""
        known = self.llama.input_ids[: self.llama.n_tokens]
        same = min(len(known), len(input_ids) - 1)
        differs = np.nonzero(known[:same] != input_ids[:same])[0]
        self.llama.n_tokens = int(differs[0]) if len(differs) else same
        fresh = [int(t) for t in input_ids[self.llama.n_tokens :]]
        draft: list[int] = []
        while len(draft) < DRAFT_TOKENS:
            self.llama.eval(fresh)  # forgets what lies behind n_tokens
            logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
            draft.append(int(np.ctypeslib.as_array(logits, shape=(self.llama.n_vocab(),)).argmax()))
            fresh = draft[-1:]
        return np.array(draft, dtype=np.intc)


def llamacpp_peers(network: Any, draft: Any, lm: LM, context: int) -> list[LlamaCpp | Drafted]:
    """For each kind of file plain, with prompt lookup, and with a draft model where there is one. `network`, `draft`:
    bare transformers models; `lm`: ours, for the tokenizer; `context`: the most tokens of a prompt and its answer."""
    peers: list[LlamaCpp | Drafted] = []
    with tempfile.TemporaryDirectory(prefix="segue-gguf-") as folder:
        for kind in KINDS:
            path = convert(network, lm.tokenizer, Path(folder) / f"{kind}.gguf", kind)
            name = f"llama.cpp {kind}"
            peers.append(LlamaCpp(name, _load(path, context), lm.eos_ids, lm.vocab_size))
            lookup = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS)
            peers.append(Drafted(f"{name} prompt lookup", _load(path, context, lookup), lm.eos_ids))
            if draft is not None:
                small = convert(draft, lm.tokenizer, Path(folder) / f"draft-{kind}.gguf", kind)
                drafter = Small(_load(small, context))
                peers.append(Drafted(f"{name} draft", _load(path, context, drafter), lm.eos_ids))
    return peers


def _load(path: Path, context: int, draft: Any = None) -> Any:
    threads = torch.get_num_threads()
    options = model_options()
    # Its constructor has no parameter for what must not be on some processors: it asks for the defaults by this name.
    with patch("llama_cpp.llama_cpp.llama_model_default_params", lambda: options):
        return llama_cpp.Llama(
            str(path),
            n_ctx=context + SLACK,
            n_threads=threads,
            n_threads_batch=threads,
            use_mmap=False,  # the file is gone after loading
            draft_model=draft,
            logits_all=draft is not None,  # else its buffer holds one batch, and long texts overflow it
            verbose=False,
        )
