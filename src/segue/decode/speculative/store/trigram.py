"""A table of trigrams on disk: for two tokens their likeliest successors in a corpus.

1. `build` counts all trigrams, divides by how often their first two tokens were followed by anything, and keeps the
   `SUCCESSORS` likeliest of each pair. The file has the safetensors format: a JSON header and four plain arrays.
2. It is written beside its place and renamed into it: whoever is killed leaves the old table.
3. `open_table` maps it. It is of one tokenizer, as every store is, and refused for models with another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from segue.decode.speculative.store.base import VERIFIED, StoreError, foreign
from segue.models.lm import LM

FORMAT = "segue trigrams 2"
SUCCESSORS = 12  # kept of every pair
BUFFER = 1 << 20  # trigrams counted at a time
RECENT = 1 << 14  # rows of a mapped table that stay dictionaries
ARRAYS = {"keys": ("I64", np.int64), "starts": ("I64", np.int64), "tokens": ("I32", np.int32), "p": ("F32", np.float32)}

Pair = tuple[int, int]
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # trigrams as numbers (n,), ascending, and how often each occurs


def build(
    documents: Iterable[Sequence[int]],
    path: str | os.PathLike[str],
    model: Mapping[str, Any],
    *,
    progress: Callable[[int], None] = lambda documents: None,
) -> int:
    """Count the trigrams of token documents and write their table to `path`, whole or not at all; returns how many
    pairs it has. `model` is the `identity` of the one whose ids these are. Raises StoreError for ids outside its
    vocabulary, where there is no trigram, and where the file cannot be put there."""
    size, file = model["vocab_size"], Path(path)
    if size >= 2**21:  # a trigram is counted as one number of 63 bits
        raise StoreError(f"a vocabulary of {size:,} tokens has no table of trigrams: up to {2**21 - 1:,} are possible")
    if not file.absolute().parent.is_dir():
        raise StoreError(f"there is no folder {file.absolute().parent} to write {file.name} to")
    if file.is_dir():
        raise StoreError(f"{file} is a folder, and a table is a file: name one")
    codes, counts = _count(documents, size, progress)
    if not len(codes):
        raise StoreError("the corpus has no three tokens in a row: give it some text")
    arrays = _tabulate(codes, counts, size)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as stream:
            stream.write(_header(arrays, model))
            for array in arrays.values():
                stream.write(np.ascontiguousarray(array).data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    return len(arrays["keys"])


def _count(documents: Iterable[Sequence[int]], size: int, progress: Callable[[int], None]) -> Counts:
    nothing = np.empty(0, dtype=np.int64)
    parts: list[Counts] = [(nothing, nothing)]
    buffer: list[NDArray[np.int64]] = []
    buffered = 0
    for number, document in enumerate(documents, start=1):
        ids = np.asarray(document, dtype=np.int64)
        bad = ids[(ids < 0) | (ids >= size)]
        if len(bad):
            raise StoreError(f"document {number} has token id {bad[0]}, outside the vocabulary of {size} tokens")
        buffer.append((ids[:-2] * size + ids[1:-1]) * size + ids[2:])
        buffered += len(buffer[-1])
        progress(number)
        if buffered >= BUFFER:
            parts.append(np.unique(np.concatenate(buffer), return_counts=True))
            buffer, buffered = [], 0
            if len(parts) >= 8:
                parts = [_sum(parts)]
    if buffer:
        parts.append(np.unique(np.concatenate(buffer), return_counts=True))
    return _sum(parts)


def _sum(parts: list[Counts]) -> Counts:
    codes, where = np.unique(np.concatenate([codes for codes, _ in parts]), return_inverse=True)
    counts = np.zeros(len(codes), dtype=np.int64)
    np.add.at(counts, where, np.concatenate([counts for _, counts in parts]))
    return codes, counts


def _tabulate(codes: NDArray[np.int64], counts: NDArray[np.int64], size: int) -> dict[str, NDArray[Any]]:
    """Counts as rows of successors, likeliest first, of equal ones the smaller token first."""
    pairs, thirds = codes // size, codes % size
    order = np.lexsort((thirds, -counts, pairs))
    pairs, thirds, counts = pairs[order], thirds[order], counts[order]
    keys, starts, lengths = np.unique(pairs, return_index=True, return_counts=True)
    kept = np.arange(len(pairs)) - np.repeat(starts, lengths) < SUCCESSORS
    p = counts / np.repeat(np.add.reduceat(counts, starts), lengths)
    ends = np.cumsum(np.minimum(lengths, SUCCESSORS))
    return {
        "keys": keys,
        "starts": np.concatenate([[0], ends]).astype(np.int64),
        "tokens": thirds[kept].astype(np.int32),
        "p": p[kept].astype(np.float32),
    }


def _header(arrays: dict[str, NDArray[Any]], model: Mapping[str, Any]) -> bytes:
    digest, begin = hashlib.sha256(), 0
    header: dict[str, Any] = {}
    for name, array in arrays.items():
        digest.update(np.ascontiguousarray(array).data)
        stated = {"dtype": ARRAYS[name][0], "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        header[name], begin = stated, begin + array.nbytes
    facts = {"format": FORMAT, "model": json.dumps(dict(model)), "sha256": digest.hexdigest()}
    text = json.dumps({"__metadata__": facts, **header}).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, eq=False)
class Trigrams:
    """A mapped table: pair (a, b) is keys[i] = a * V + b, ascending, and its row begins at starts[i]."""

    path: Path
    model: dict[str, Any]  # identity of the one whose token ids these are
    digest: str  # SHA-256 of the arrays
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    p: NDArray[np.float32]
    _alike: WeakSet[LM] = field(default_factory=WeakSet, init=False)  # models found to have the same tokenizer
    _recent: Callable[[Pair], dict[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_recent", lru_cache(RECENT)(self._row))

    def __deepcopy__(self, memo: object) -> Trigrams:
        return self  # read-only

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, pair: Pair, default: dict[int, float], /) -> Mapping[int, float]:
        """Probabilities of the successors, likeliest first; the default for a pair that was not seen."""
        return self._recent(pair) or default

    def _row(self, pair: Pair) -> dict[int, float]:
        key = pair[0] * self.model["vocab_size"] + pair[1]
        i = int(self.keys.searchsorted(key))
        if i == len(self.keys) or self.keys[i] != key:
            return {}
        span = slice(int(self.starts[i]), int(self.starts[i + 1]))
        return dict(zip(self.tokens[span].tolist(), self.p[span].tolist(), strict=True))

    def lacks(self, lm: LM) -> str:
        """Why the table is of no use for a model, or nothing."""
        if lm not in self._alike:
            if reason := foreign(lm, self.model, self.path, "segue index table"):
                return reason
            self._alike.add(lm)
        return ""


def open_table(path: str | os.PathLike[str]) -> Trigrams:
    """A table mapped once per process; one that was written anew since is mapped anew. Raises StoreError where the file
    is none, or not whole."""
    file = Path(path).expanduser().resolve()
    try:
        state = file.stat()
    except OSError as error:
        raise StoreError(f"there is no table {file} ({error.strerror}): `segue index table` makes one") from None
    return _mapped(file, (state.st_mtime_ns, state.st_ino, state.st_size))


@lru_cache(maxsize=8)
def _mapped(file: Path, stamp: tuple[int, ...]) -> Trigrams:
    try:
        whole = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
        begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        header = json.loads(whole[8:begin].tobytes())
        facts = header["__metadata__"]
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}")
        model = json.loads(facts["model"])
        _ = model["tokenizer"], model["name"], model["vocab_size"]
        arrays: dict[str, Any] = {}
        for name, (kind, dtype) in ARRAYS.items():
            start, end = (begin + offset for offset in header[name]["data_offsets"])
            if header[name]["dtype"] != kind or end > len(whole):
                raise ValueError(f"{name} is cut short or of another type")
            arrays[name] = whole[start:end].view(dtype)
        if len(arrays["starts"]) != len(arrays["keys"]) + 1 or arrays["starts"][-1] != len(arrays["tokens"]):
            raise ValueError("its rows do not fit each other")
        if len(whole) <= VERIFIED and hashlib.sha256(whole[begin:].data).hexdigest() != facts["sha256"]:
            raise ValueError("its contents have changed")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(f"{file} is no table of trigrams, or damaged ({reason}): make it again") from None
    return Trigrams(file, model, facts["sha256"], **arrays)
