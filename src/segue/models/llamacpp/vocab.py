"""A llama.cpp vocabulary, read by its low-level calls."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import llama_cpp

UNKNOWN, UNUSED, CONTROL, USER_DEFINED, BYTE = 1, 2, 8, 16, 32  # llama_token_attr
NOT_TEXT = CONTROL | UNKNOWN
SPELLING = {"unk": "unknown", "pad": "padding"}  # as the metadata write these names


class Vocab:
    """Tokens and metadata of a loaded model, which must stay loaded. ValueError for a file without a vocabulary."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        kind = llama_cpp.llama_vocab_type(self.vocab)
        if kind == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ValueError("the GGUF file has no vocabulary: give prompts as token ids")
        if kind not in (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE):
            raise ValueError("the vocabulary of the GGUF file is neither byte-level BPE nor SentencePiece's BPE")
        self.sentencepiece = kind == llama_cpp.LLAMA_VOCAB_TYPE_SPM
        self.size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))
        self.add_eos = bool(llama_cpp.llama_vocab_get_add_eos(self.vocab))
        self._pieces: dict[int, bytes] = {}

    @cached_property
    def attributes(self) -> list[int]:
        return [int(llama_cpp.llama_vocab_get_attr(self.vocab, i)) for i in range(self.size)]

    @cached_property
    def ids(self) -> dict[str, int]:
        """By text. Rows that no token uses are left out."""
        return {self.text(i): i for i, attribute in enumerate(self.attributes) if attribute != UNUSED}

    def having(self, attributes: int) -> dict[str, int]:
        """The tokens with one of these attributes, by text."""
        return {self.text(i): i for i, attribute in enumerate(self.attributes) if attribute & attributes}

    def text(self, number: int) -> str:
        """As the vocabulary writes it: Ġthe, ▁the, <0x0A>."""
        return str(llama_cpp.llama_vocab_get_text(self.vocab, number).decode())

    def score(self, number: int) -> float:
        return float(llama_cpp.llama_vocab_get_score(self.vocab, number))

    def piece(self, number: int) -> bytes:
        """What the token stands for."""
        if number not in self._pieces:
            room = 4 * len(llama_cpp.llama_vocab_get_text(self.vocab, number)) + 8
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.vocab, number, buffer, room, 0, True)
            assert 0 <= count <= room
            self._pieces[number] = buffer.raw[:count]
        return self._pieces[number]

    def tokenize(self, text: str) -> list[int]:
        """Text that is all text: no special token is recognised in it and none put around it."""
        data = text.encode()
        room = len(data) + 2
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, room, False, False)
        assert 0 <= count <= room
        return list(buffer[:count])

    def special(self, name: str) -> int | None:
        """The id of bos, eos, unk or pad. For bos and eos of a byte-level file that names none, llama.cpp would answer
        11, whatever that token is."""
        written = self.meta(f"tokenizer.ggml.{SPELLING.get(name, name)}_token_id")
        if written is not None:
            return int(written) if int(written) < self.size else None
        known = self.sentencepiece and name in ("bos", "eos")
        number = getattr(llama_cpp, f"llama_vocab_{name}")(self.vocab) if known else -1
        return int(number) if number >= 0 else None

    def meta(self, key: str) -> str | None:
        return meta(self.model, key)


def meta(model: Any, key: str) -> str | None:
    """A value of a loaded file's metadata as text."""
    size = llama_cpp.llama_model_meta_val_str(model, key.encode(), ctypes.create_string_buffer(1), 1)
    if size < 0:
        return None
    buffer = ctypes.create_string_buffer(size + 1)
    llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, size + 1)
    return buffer.value.decode()
