"""How a tokenizer spells bytes: its tokens' bytes, the canonical tokens of a text, and which token may follow which.

A list of tokens is canonical where it is what the tokenizer makes of its own bytes. That holds for every prefix of a
canonical list in byte-pair encoding and in longest-prefix matching, so that probabilities of strings can be summed.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.data import CapabilityError
from segue.models.lm import LM
from segue.models.vocabulary import SPACE, longest_tokens, token_bytes

REMEMBERED = 4096  # words, and contexts, whose answers are kept
SAMPLE = "Hello there, it's 2024!\n  Two  spaces,\tÜber ça.\n\nEnd"


class Spelling(ABC):
    """`pieces`: the bytes of every token, empty for those that are no text. `begin`: a token that stands in front of a
    text that has none, if there is one."""

    def __init__(self, pieces: Sequence[bytes], begin: int | None = None) -> None:
        self.pieces = list(pieces)
        self.begin = begin
        self.longest = max(map(len, self.pieces))
        self._sorted = sorted((piece, token) for token, piece in enumerate(self.pieces) if piece)
        self._successors: dict[tuple[int, ...], Any] = {}

    @abstractmethod
    def encode(self, text: bytes) -> list[int]:
        """The canonical tokens of a text."""

    @abstractmethod
    def stable(self, tokens: Sequence[int], end: int) -> int:
        """How many of these canonical tokens, all within the first `end` bytes, stay and do not matter to what follows,
        whatever is written behind that."""

    def bytes_of(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.pieces[t] for t in tokens)

    def starting(self, prefix: bytes) -> list[int]:
        """Tokens whose bytes start with `prefix`."""
        first = bisect.bisect_left(self._sorted, (prefix, -1))
        found = []
        while first < len(self._sorted) and self._sorted[first][0].startswith(prefix):
            found.append(self._sorted[first][1])
            first += 1
        return found

    def follows(self, left: Sequence[int], token: int) -> bool:
        """Whether canonical tokens stay canonical with `token` behind them."""
        tail = list(left[self.stable(left, len(self.bytes_of(left))) :])
        try:
            return self.encode(self.bytes_of([*tail, token])) == [*tail, token]
        except ValueError:  # no text begins so
            return False

    def successors(self, left: Sequence[int]) -> Any:
        """All tokens that may follow, as an array of ids."""
        tail = tuple(left[self.stable(left, len(self.bytes_of(left))) :])
        if tail not in self._successors:
            if len(self._successors) >= REMEMBERED:
                self._successors.clear()
            self._successors[tail] = np.array([t for _, t in self._sorted if self.follows(tail, t)], dtype=np.int64)
        return self._successors[tail]


class LongestPrefix(Spelling):
    """At every place the longest token that fits."""

    def __init__(self, pieces: Sequence[bytes], begin: int | None = None) -> None:
        super().__init__(pieces, begin)
        self._ids = dict(reversed(self._sorted))

    def encode(self, text: bytes) -> list[int]:
        found, end = longest_tokens(text, self._ids, self.longest)
        if end < len(text):
            raise ValueError(f"no token spells {text[end : end + 1]!r}")
        return found

    def stable(self, tokens: Sequence[int], end: int) -> int:
        place, count = 0, 0
        for token in tokens:
            if place + self.longest > end:
                break
            place += len(self.pieces[token])
            count += 1
        return count


class BytePairs(Spelling):
    """Merges in the order they were learned, within words. `merges`: pairs of symbols; `ids`: of symbols; `split` gives
    the words of a text as lists of symbols, each with its bytes."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        merges: Sequence[tuple[str, str]],
        ids: dict[str, int],
        split: Any,
        begin: int | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(pieces, begin)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._ids, self._split, self._whole = ids, split, whole
        self._words: dict[tuple[str, ...], list[int]] = {}
        # Without a token across it, a space between others begins a word.
        self._cuts = not any(re.search(rb"\S ", piece) for piece in self.pieces)
        # Of a token that goes on with a begun character nobody can tell alone.
        self._own = {
            t for t, p in enumerate(self.pieces) if p and (0x80 <= p[0] < 0xC0 or Spelling.follows(self, [], t))
        }

    def encode(self, text: bytes) -> list[int]:
        return [token for word in self._split(text) for token in self._merged(tuple(word))]

    def stable(self, tokens: Sequence[int], end: int) -> int:
        if not self._cuts:
            return 0
        sizes = np.cumsum([0, *(len(self.pieces[t]) for t in tokens)]).tolist()
        for place in range(len(tokens) - 1, 0, -1):
            here, before = self.pieces[tokens[place]], self.pieces[tokens[place - 1]]
            # The space and what follows it must be there already.
            if sizes[place] + 2 <= end and _begins(here) and not before[-1:].isspace():
                return place
        return 0

    def follows(self, left: Sequence[int], token: int) -> bool:
        if self._cuts and left and _begins(self.pieces[token]) and not self.pieces[left[-1]][-1:].isspace():
            return token in self._own
        return token in self._own and super().follows(left, token)

    def _merged(self, word: tuple[str, ...]) -> list[int]:
        known = self._words.get(word)
        if known is not None:
            return known
        symbols = list(word)
        if self._whole and "".join(word) in self._ids:
            symbols = ["".join(word)]
        while len(symbols) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(symbols)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            at = ranks.index(best)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        found = [self._ids[symbol] for symbol in symbols]
        if len(self._words) >= REMEMBERED * 16:
            self._words.clear()
        self._words[word] = found
        return found


def spelling_of(lm: LM) -> Spelling:
    """How a model's tokenizer spells, made once. CapabilityError for one that is neither byte-pair encoding over bytes
    (or SentencePiece's with bytes to fall back on) nor longest-prefix matching."""
    known: Spelling | None = vars(lm).get("spelling")
    if known is None:
        known = vars(lm)["spelling"] = _from_tokenizer(lm)
    return known


def _from_tokenizer(lm: LM) -> Spelling:
    tokenizer = lm.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CapabilityError(f"{lm.name} has no fast tokenizer: how it spells bytes is not known")
    form = json.loads(backend.to_str())
    model = form["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("end_of_word_suffix"):
        raise CapabilityError(
            f"the tokenizer of {lm.name} is {model['type']}: sums over spellings need byte-pair encoding over bytes or "
            "longest-prefix matching"
        )
    made, specials = token_bytes(tokenizer, lm.name)
    outside = specials | {entry["id"] for entry in form["added_tokens"]}
    pieces = [b"" if t in outside else made.get(t, b"") for t in range(lm.vocab_size)]
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    merges = [(str(first), str(second)) for first, second in pairs]
    split = _by_characters(model["vocab"]) if model.get("byte_fallback") else _by_words(backend)
    begin = getattr(tokenizer, "bos_token_id", None)
    spelling = BytePairs(pieces, merges, model["vocab"], split, begin, bool(model.get("ignore_merges")))
    ours = [spelling.encode((space + SAMPLE).encode()) for space in ("", " ")]
    if tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] not in ours:
        raise CapabilityError(f"the tokenizer of {lm.name} does more to a text than byte-pair encoding of its bytes")
    return spelling


def _by_words(backend: Any) -> Any:
    """Byte-level: the tokenizer's own words, a character for every byte."""

    def split(text: bytes) -> list[list[str]]:
        whole, rest = _characters(text)
        words = backend.pre_tokenizer.pre_tokenize_str(whole + (_complete(rest) if rest else ""))
        left, found = len(text), []
        for word, _ in words:
            if left > 0:
                found.append(list(word[:left]))
            left -= len(word)
        return found

    return split


def _by_characters(vocabulary: dict[str, int]) -> Any:
    """SentencePiece with bytes to fall back on: one word, a symbol for every character that has a token."""

    def split(text: bytes) -> list[list[str]]:
        whole, rest = _characters(text)
        if rest:
            _complete(rest)
        symbols: list[str] = []
        for character in whole.replace(" ", SPACE):
            symbols += [character] if character in vocabulary else [f"<0x{byte:02X}>" for byte in character.encode()]
        return [symbols + [f"<0x{byte:02X}>" for byte in rest]]

    return split


def _characters(text: bytes) -> tuple[str, bytes]:
    """The whole characters of a text, and the bytes of one that is not complete."""
    for cut in range(4):
        try:
            return text[: len(text) - cut].decode(), text[len(text) - cut :]
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{text[-8:]!r} is not the beginning of any text in UTF-8")


def _complete(start: bytes) -> str:
    """A character that begins with these bytes: a letter where one does."""
    size = 2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4
    found = []
    for second in range(0x80, 0xC0):
        for last in (0x80, 0xA1, 0xBF):
            whole = (start + bytes([second]) + bytes([last]) * 3)[:size]
            try:
                found.append(whole.decode())
            except UnicodeDecodeError:
                continue
    if not found:
        raise ValueError(f"no character begins with {start!r}")
    return next((c for c in found if c.isalpha()), next((c for c in found if not c.isspace()), found[0]))


def _begins(piece: bytes) -> bool:
    """Whether a token begins a word: one space, and what is none."""
    return piece[:1] == b" " and len(piece) > 1 and not piece[1:2].isspace()
