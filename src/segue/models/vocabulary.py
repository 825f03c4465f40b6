"""The bytes that every token of a model writes, as a grammar must know them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from segue.data import CapabilityError
from segue.models.lm import LM

SPACE = "\u2581"  # SentencePiece's sign for a space
ANCHOR = "\x02"  # no text has it, and no token joins it to what follows
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
HEAD = 1024  # bytes of a forced text that are looked at: of its tokens only the first is taken, again at every step


class TokenBytes:
    """A model's vocabulary in the form that llguidance reads: one entry for every row of the logits, empty for rows
    that no token uses. `ends` are the tokens that end a text; for a model without any it is one behind the last row."""

    def __init__(self, lm: LM, end_ids: Iterable[int]) -> None:
        self._lm = lm
        self.ends = sorted(end_ids) or [lm.vocab_size]
        found, specials = token_bytes(lm.tokenizer, lm.name)
        rows = max(lm.vocab_size, self.ends[-1] + 1)
        self.tokens = [found.get(i, b"") for i in range(rows)]
        self.special_token_ids = sorted({i for i in specials if i < rows} | set(self.ends))
        special = set(self.special_token_ids)
        self._numbers = {text: i for i, text in enumerate(self.tokens) if text and i not in special}
        self._most = max(map(len, self._numbers), default=1)
        for number in self.special_token_ids:  # a name, so that it has one; it is no text
            self.tokens[number] = self.tokens[number] or f"<|{number}|>".encode()
        self.eos_token_id = self.ends[0]
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text that a grammar forces, as the model's own tokenizer writes it in the middle of another:
        at the start some put a space in front. Where that cannot be had, the longest tokens that fit. Of a long text
        its beginning."""
        data = _head(text if isinstance(text, bytes) else text.encode())
        try:
            before, whole = (self._lm.encode(ANCHOR + part, special=False) for part in ("", data.decode()))
        except ValueError:  # half a character
            before, whole = [], []
        rest = whole[len(before) :]
        if whole[: len(before)] == before and b"".join(self.tokens[i] for i in rest) == data:
            return rest
        found, _ = longest_tokens(data, self._numbers, self._most)
        return found  # a byte that no token begins with llguidance finds by itself


def longest_tokens(text: bytes, ids: Mapping[bytes, int], most: int) -> tuple[list[int], int]:
    """At every place the longest token that fits, of at most so many bytes, and where the first byte is that no token
    begins with; the text's length where there is none."""
    found: list[int] = []
    place = 0
    while place < len(text):
        ends = range(min(len(text), place + most), place, -1)
        end = next((end for end in ends if text[place:end] in ids), None)
        if end is None:
            break
        found.append(ids[text[place:end]])
        place = end
    return found, place


def _head(data: bytes) -> bytes:
    """The beginning of a text, not in the middle of a character."""
    end = min(len(data), HEAD)
    while 0 < end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


def token_bytes(tokenizer: Any, name: str) -> tuple[dict[int, bytes], set[int]]:
    """Bytes by token id, and the ids that are no text. CapabilityError for a tokenizer whose tokens do not write bytes
    of their own: those of BERT, whose spaces depend on the neighbours."""
    if hasattr(tokenizer, "token_bytes"):  # a GGUF file knows
        return tokenizer.token_bytes(), set(tokenizer.all_special_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    form = json.loads(backend.to_str()) if backend is not None else {}
    added = {token["id"]: token for token in form.get("added_tokens", [])}
    kinds = _types(form.get("decoder"))
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    if "ByteLevel" in kinds:
        table = _byte_level()
        made = {i: bytes(table[c] for c in text) if set(text) <= table.keys() else text.encode()
                for i, text in texts.items()}  # fmt: skip
    elif {"Metaspace", "ByteFallback"} & kinds:
        fallback = "ByteFallback" in kinds
        made = {i: _sentencepiece(text, fallback) for i, text in texts.items()}
    else:
        kind = form.get("model", {}).get("type") or type(tokenizer).__name__
        raise CapabilityError(
            f"grammars need tokens that stand for bytes (byte-level BPE or SentencePiece), and the tokenizer of {name} "
            f"is {kind} with decoder {', '.join(sorted(kinds)) or 'none'}: use choices, or a constraint of token ids"
        )
    made |= {i: token["content"].encode() for i, token in added.items()}
    specials = {i for i, token in added.items() if token["special"]} | set(tokenizer.all_special_ids)
    return made, specials


def _types(decoder: Any) -> set[str]:
    """The types of a decoder and of its parts."""
    if not isinstance(decoder, dict):
        return set()
    inner = [_types(part) for part in decoder.get("decoders", [])]
    return {decoder["type"]}.union(*inner)


def _sentencepiece(text: str, fallback: bool) -> bytes:
    match = BYTE.fullmatch(text) if fallback else None
    return bytes([int(match[1], 16)]) if match else text.replace(SPACE, " ").encode()


def _byte_level() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others follow from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in plain)
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}
