"""The vocabulary of a loaded GGUF model, behaving as the transformers tokenizer it was made from."""

from __future__ import annotations

import ctypes
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import llama_cpp
from tokenizers import models
from transformers.utils.chat_template_utils import render_jinja_template

from segue.models.llamacpp.names import COMPOSED, PREFIX

UNKNOWN, UNUSED, CONTROL, USER_DEFINED, BYTE = 1, 2, 8, 16, 32  # llama_token_attr
SPACE = "▁"
NAMES = ("bos", "eos", "unk", "pad")
LATER = {"unk": "unknown", "pad": "padding"}  # as the metadata spells them
OWN_DEFAULT = ("bos", "eos")  # llama.cpp has ids for these even where a byte-level file names none


class GGUFTokenizer:
    """What Segue asks of a transformers tokenizer, over a llama.cpp vocabulary. The model must stay loaded.

    Text is cut at special tokens here, as transformers does; llama.cpp tokenizes what is between them.
    """

    def __init__(self, model: Any) -> None:
        """`model`: llama.cpp's pointer. ValueError for a file without a vocabulary."""
        self.model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        kind = llama_cpp.llama_vocab_type(self.vocab)
        if kind == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ValueError("the GGUF file has no vocabulary: give prompts as token ids")
        if kind not in (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE):
            raise ValueError("the vocabulary of the GGUF file is neither byte-level BPE nor SentencePiece's BPE")
        self.spaced = kind == llama_cpp.LLAMA_VOCAB_TYPE_SPM  # spaces are written as SPACE, single bytes as <0x0A>
        self.size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        own = self._meta("tokenizer.ggml.add_space_prefix")
        self.prefix = (self._meta(PREFIX) or "each") if self.spaced and own != "false" else ""
        composed = self._meta(COMPOSED)
        self.composed = composed == "true" if composed else self._meta("tokenizer.ggml.pre") == "qwen2"
        self.special = {name: self._special(name) for name in NAMES}
        self.chat_template = self._meta("tokenizer.chat_template")
        self._pieces: dict[int, bytes] = {}

    @property
    def bos_token_id(self) -> int | None:
        return self.special["bos"]

    @property
    def eos_token_id(self) -> int | None:
        return self.special["eos"]

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Tokens that are no text."""
        return [i for i, attribute in enumerate(self._attributes) if attribute & (CONTROL | UNKNOWN)]

    def __len__(self) -> int:
        return len(self.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        """Token texts as transformers writes them; rows that no token uses are left out."""
        return dict(self._vocabulary)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids: list[int] = []
        start = True
        for piece in self._cut.split(text):
            if piece:
                number = self._marked.get(piece)
                ids += self._tokenize(piece, start) if number is None else [number]
                start = False
        if add_special_tokens:
            front, back = llama_cpp.llama_vocab_get_add_bos(self.vocab), llama_cpp.llama_vocab_get_add_eos(self.vocab)
            bos = [self.bos_token_id] if front and self.bos_token_id is not None else []
            eos = [self.eos_token_id] if back and self.eos_token_id is not None else []
            ids = [*bos, *ids, *eos]
        return {"input_ids": ids}

    def decode(
        self, ids: Iterable[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Text of token ids; bytes that are no whole character become U+FFFD. Ids of no token are passed over."""
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True would change the text: leave it out")
        hidden = CONTROL | UNKNOWN if skip_special_tokens else 0
        kept = [i for i in map(int, ids) if 0 <= i < self.size and not self._attributes[i] & hidden]
        if not self.spaced:
            return b"".join(map(self._piece, kept)).decode(errors="replace")
        text = "".join(self._spelled(kept))
        return text[1:] if self.prefix and text.startswith(" ") else text

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as one text, by the template in the file; to be tokenized without special tokens."""
        if self.chat_template is None:
            raise ValueError("the GGUF file has no chat template")
        if tokenize:
            raise ValueError("tokenize=True is not offered: call the tokenizer on the text")
        named = {f"{n}_token": self._text(i) for n, i in self.special.items() if i is not None}
        rendered, _ = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **named,
        )
        return str(rendered[0])

    @cached_property
    def _attributes(self) -> list[int]:
        return [int(llama_cpp.llama_vocab_get_attr(self.vocab, i)) for i in range(self.size)]

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return {self._text(i): i for i, attribute in enumerate(self._attributes) if attribute != UNUSED}

    @cached_property
    def _marked(self) -> dict[str, int]:
        """Tokens that are found in a text as they are, before anything else."""
        wanted = CONTROL | UNKNOWN | USER_DEFINED
        return {self._text(i): i for i, attribute in enumerate(self._attributes) if attribute & wanted}

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        longest_first = sorted(self._marked, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)")

    @cached_property
    def _merges(self) -> models.BPE:
        """The scores as merges, for text without the space that llama.cpp always puts in front."""
        vocab = self._vocabulary
        score = {token: llama_cpp.llama_vocab_get_score(self.vocab, i) for token, i in vocab.items()}
        plain = {t for t, i in vocab.items() if not self._attributes[i] & (CONTROL | UNKNOWN | USER_DEFINED | BYTE)}
        pairs = [(t[:cut], t[cut:]) for t in plain for cut in range(1, len(t)) if {t[:cut], t[cut:]} <= plain]
        pairs.sort(key=lambda pair: (-score[pair[0] + pair[1]], vocab[pair[0]], vocab[pair[1]]))
        return models.BPE(vocab=vocab, merges=pairs, byte_fallback=True)

    def _tokenize(self, text: str, start: bool) -> list[int]:
        """Text without special tokens in it; `start`: nothing stands before it."""
        if self.composed:
            text = unicodedata.normalize("NFC", text)
        if not self.spaced:
            return self._plain(text)
        text = text.replace(" ", SPACE)
        if self.prefix == "each" or (
            not text.startswith(SPACE) and (self.prefix == "always" or (self.prefix == "first" and start))
        ):
            text = SPACE + text
        if not self.prefix:
            return self._plain(text)
        if text.startswith(SPACE) and text != SPACE:
            return self._plain(text[1:])  # llama.cpp puts the space in front again
        return [token.id for token in self._merges.tokenize(text)]

    def _plain(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 2
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, room, False, False)
        assert 0 <= count <= room
        return list(buffer[:count])

    def _spelled(self, ids: Iterable[int]) -> Iterable[str]:
        """Runs of byte tokens become characters where they are whole, else U+FFFD each; spaces come back."""
        run: list[str] = []
        for number in [*ids, None]:
            byte = number is not None and self._attributes[number] & BYTE
            if run and not byte:
                try:
                    yield bytes(int(text[3:5], 16) for text in run).decode()
                except UnicodeDecodeError:
                    yield "\ufffd" * len(run)
                run = []
            if number is not None:
                if byte:
                    run.append(self._text(number))
                elif self._attributes[number] != UNUSED:
                    yield self._text(number).replace(SPACE, " ")

    def _text(self, number: int) -> str:
        return str(llama_cpp.llama_vocab_get_text(self.vocab, number).decode())

    def _piece(self, number: int) -> bytes:
        if number not in self._pieces:
            room = 4 * len(llama_cpp.llama_vocab_get_text(self.vocab, number)) + 8
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.vocab, number, buffer, room, 0, True)
            assert 0 <= count <= room
            self._pieces[number] = buffer.raw[:count]
        return self._pieces[number]

    def _special(self, name: str) -> int | None:
        written = self._meta(f"tokenizer.ggml.{LATER.get(name, name)}_token_id")
        if written is not None:
            return int(written) if int(written) < self.size else None
        number = getattr(llama_cpp, f"llama_vocab_{name}")(self.vocab) if self.spaced and name in OWN_DEFAULT else -1
        return int(number) if number >= 0 else None

    def _meta(self, key: str) -> str | None:
        """A value of the file's metadata as text."""
        size = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), ctypes.create_string_buffer(1), 1)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        llama_cpp.llama_model_meta_val_str(self.model, key.encode(), buffer, size + 1)
        return buffer.value.decode()
