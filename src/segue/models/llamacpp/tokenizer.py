"""The vocabulary of a loaded GGUF model, behaving as the transformers tokenizer it was made from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import models
from transformers.utils.chat_template_utils import render_jinja_template

from segue.models.llamacpp.names import COMPOSED, PREFIX
from segue.models.llamacpp.sentencepiece import SPACE
from segue.models.llamacpp.vocab import BYTE, NOT_TEXT, UNUSED, USER_DEFINED, Vocab

SPECIAL = ("bos", "eos", "unk", "pad")


class GGUFTokenizer:
    """What Segue asks of a transformers tokenizer, over a llama.cpp model, which must stay loaded.

    Text is cut at special tokens here, as transformers does; llama.cpp tokenizes what is between them.
    """

    def __init__(self, model: Any) -> None:
        """`model`: llama.cpp's pointer. ValueError for a file without a vocabulary."""
        self.vocab = Vocab(model)
        bare = not self.vocab.sentencepiece or self.vocab.meta("tokenizer.ggml.add_space_prefix") == "false"
        self.prefix = "" if bare else self.vocab.meta(PREFIX) or "each"
        composed = self.vocab.meta(COMPOSED)
        self.composed = composed == "true" if composed else self.vocab.meta("tokenizer.ggml.pre") == "qwen2"
        self.special = {name: self.vocab.special(name) for name in SPECIAL}
        self.chat_template = self.vocab.meta("tokenizer.chat_template")

    @property
    def bos_token_id(self) -> int | None:
        return self.special["bos"]

    @property
    def eos_token_id(self) -> int | None:
        return self.special["eos"]

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that are no text."""
        return list(self.vocab.having(NOT_TEXT).values())

    def __len__(self) -> int:
        return len(self.vocab.ids)

    def token_bytes(self) -> dict[int, bytes]:
        """What every token of text stands for."""
        texts = [i for i, a in enumerate(self.vocab.attributes) if not a & NOT_TEXT and a != UNUSED]
        return {i: self.vocab.piece(i) for i in texts}

    def get_vocab(self) -> dict[str, int]:
        """Token texts as transformers writes them."""
        return dict(self.vocab.ids)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids: list[int] = []
        for piece in filter(None, self._cut.split(text)):
            number = self._marked.get(piece)
            ids += self._tokenize(piece, not ids) if number is None else [number]
        if add_special_tokens:
            front = [self.bos_token_id] if self.vocab.add_bos and self.bos_token_id is not None else []
            back = [self.eos_token_id] if self.vocab.add_eos and self.eos_token_id is not None else []
            ids = [*front, *ids, *back]
        return {"input_ids": ids}

    def decode(
        self, ids: Iterable[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Text of token ids; bytes that are no whole character become U+FFFD. Ids of no token are passed over."""
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True would change the text: leave it out")
        hidden = NOT_TEXT if skip_special_tokens else 0
        attributes = self.vocab.attributes
        kept = [i for i in map(int, ids) if 0 <= i < self.vocab.size and not attributes[i] & hidden]
        if not self.vocab.sentencepiece:
            return b"".join(map(self.vocab.piece, kept)).decode(errors="replace")
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
        named = {f"{name}_token": self.vocab.text(i) for name, i in self.special.items() if i is not None}
        rendered, _ = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **named,
        )
        return str(rendered[0])

    @cached_property
    def _marked(self) -> dict[str, int]:
        """Tokens that are found in a text as they are, before anything else."""
        return self.vocab.having(NOT_TEXT | USER_DEFINED)

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        longest_first = sorted(self._marked, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)")

    @cached_property
    def _merges(self) -> models.BPE:
        """The scores as merges, for text without the space that llama.cpp would put in front."""
        ids = self.vocab.ids
        plain = set(ids) - set(self.vocab.having(NOT_TEXT | USER_DEFINED | BYTE))
        ways = [(t[:cut], t[cut:]) for t in plain for cut in range(1, len(t)) if {t[:cut], t[cut:]} <= plain]
        ways.sort(key=lambda way: (-self.vocab.score(ids[way[0] + way[1]]), ids[way[0]], ids[way[1]]))
        return models.BPE(vocab=ids, merges=ways, byte_fallback=True)

    def _tokenize(self, text: str, start: bool) -> list[int]:
        """Text without special tokens in it; `start`: nothing stands before it."""
        if self.composed:
            text = unicodedata.normalize("NFC", text)
        if not self.vocab.sentencepiece:
            return self.vocab.tokenize(text)
        text = text.replace(" ", SPACE)
        wanted = self.prefix == "always" or (self.prefix == "first" and start)
        if self.prefix == "each" or (wanted and not text.startswith(SPACE)):
            text = SPACE + text
        if not self.prefix:
            return self.vocab.tokenize(text)
        if text.startswith(SPACE) and text != SPACE:
            return self.vocab.tokenize(text[1:])  # llama.cpp puts the space in front again, of what is not empty
        return [token.id for token in self._merges.tokenize(text)]

    def _spelled(self, ids: Iterable[int]) -> Iterable[str]:
        """Runs of byte tokens become characters where they are whole, else U+FFFD each; spaces come back."""
        run: list[str] = []
        for number in [*ids, None]:
            attribute = UNUSED if number is None else self.vocab.attributes[number]
            if number is not None and attribute & BYTE:
                run.append(self.vocab.text(number))
                continue
            if run:
                try:
                    yield bytes(int(text[3:5], 16) for text in run).decode()
                except UnicodeDecodeError:
                    yield "\ufffd" * len(run)
                run = []
            if number is not None and attribute != UNUSED:
                yield self.vocab.text(number).replace(SPACE, " ")
