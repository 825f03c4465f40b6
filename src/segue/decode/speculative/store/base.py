"""A datastore on disk: a folder with meta.json and plain arrays, which is whole or refused.

All arrays are files NAME.bin that are memory-mapped; meta.json says dtype, shape and SHA-256 of each, of what model or
tokenizer the store is, from which corpus and by which command it was made. A store is read-only once it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from segue.models.lm import LM

FORMAT = 1
META = "meta.json"
SEPARATOR = -1  # in the token stream, behind every document: no match and no continuation crosses it
VERIFIED = 2**31  # bytes of a store whose contents are checked whenever it is opened; of larger ones only the sizes

Progress = Callable[[str, int, int], None]  # stage, done, of


class StoreError(ValueError):
    """A datastore that cannot be used, and why."""


class Store:
    """A token stream in which something can be looked up."""

    kind: ClassVar[str]

    def __init__(self, path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.meta = meta
        self.arrays = arrays
        self.tokens: NDArray[np.int32] = arrays["tokens"]
        self._alike: WeakSet[LM] = WeakSet()  # models found to have the same tokenizer

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, thorough: bool = False) -> Self:
        """Map a store. `thorough` checks the contents of all files, however large. Raises StoreError where it is not
        whole, or of another kind."""
        folder = Path(path)
        meta = read_meta(folder)
        if meta["kind"] != cls.kind:
            raise StoreError(
                f"{folder} is a {meta['kind']} store, and a {cls.kind} store is needed: "
                f"make one with `segue index build --kind {cls.kind}`"
            )
        check_files(folder, meta, thorough)
        return cls(folder, meta, {name: _map(folder, name, facts) for name, facts in meta["arrays"].items()})

    def lacks(self, lm: LM) -> str:
        """Why the store is of no use for a model, or nothing."""
        if lm not in self._alike:
            if reason := foreign(lm, self.meta["model"], self.path, "segue index build"):
                return reason
            self._alike.add(lm)
        return ""

    def check(self, lm: LM) -> None:
        """Raise StoreError where the store was built for something else than `lm`."""
        reason = self.lacks(lm)
        if reason:
            raise StoreError(reason)

    def follow(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """(m, length) tokens from each position on; from the end of a document on SEPARATOR."""
        places = np.minimum(starts[:, None] + np.arange(length), len(self.tokens) - 1)  # the last one is a separator
        rows = np.asarray(self.tokens[places])
        rows[np.logical_or.accumulate(rows < 0, axis=1)] = SEPARATOR
        return rows


S = TypeVar("S", bound=Store)


def opened(path: str, cls: type[S]) -> S:
    """A store mapped once per process; one that was built anew since is mapped anew."""
    folder = Path(path).expanduser().resolve()
    try:
        state = (folder / META).stat()
    except OSError:
        read_meta(folder)  # says what is wrong
        raise
    store = _opened(folder, cast(Any, cls), (state.st_mtime_ns, state.st_ino, state.st_size))
    assert isinstance(store, cls)
    return store


@lru_cache(maxsize=8)
def _opened(folder: Path, cls: type[Store], stamp: tuple[int, ...]) -> Store:
    return cls.open(folder)


def identity(lm: LM) -> dict[str, Any]:
    """What tells the vocabulary of a model: stores hold token ids, which mean nothing to another tokenizer."""
    if lm.tokenizer is None:
        words: Any = lm.vocab_size
    else:
        words = sorted(lm.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]
    return {"name": lm.name, "vocab_size": lm.vocab_size, "tokenizer": digest}


def foreign(lm: LM, built_for: Mapping[str, Any], path: Path, make: str) -> str:
    """Why the token ids of a file made for another model mean nothing to `lm`, or nothing."""
    if identity(lm)["tokenizer"] == built_for["tokenizer"]:
        return ""
    return (
        f"{path} was built for {built_for['name']} and {lm.name} has another tokenizer: "
        f"build one with `{make} -m` for {lm.name}"
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a finished store; StoreError where there is none."""
    file = folder / META
    if not file.is_file():
        unfinished = staging_of(folder)
        if unfinished.is_dir():
            raise StoreError(f"{folder} is not finished: `segue index build --resume` goes on with {unfinished}")
        if retired_of(folder).is_dir():
            raise StoreError(f"{folder} was being replaced: rename {retired_of(folder)} to it, or build it again")
        what = "is not a datastore (it has no meta.json)" if folder.exists() else "does not exist"
        raise StoreError(f"{folder} {what}: `segue index build CORPUS -o {folder}` makes one")
    try:
        meta = json.loads(file.read_text())
        known = meta["format"]
        if known == FORMAT:
            _ = meta["kind"], meta["model"]["tokenizer"], meta["model"]["name"], meta["files"], meta["arrays"]["tokens"]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{file} is damaged ({type(error).__name__}: {error}): build the store again") from None
    if known != FORMAT:
        raise StoreError(f"{folder} has format {known!r}, and this version of Segue reads {FORMAT}: build it again")
    return dict(meta)


def check_files(folder: Path, meta: dict[str, Any], thorough: bool) -> None:
    """Every file is there, as long as it was, and holds what it held."""
    total = sum(facts["bytes"] for facts in meta["files"].values())
    for name, facts in meta["files"].items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise StoreError(f"{folder} is damaged: {name} is missing; build it again")
        if size != facts["bytes"]:
            raise StoreError(
                f"{folder} is damaged: {name} has {size} bytes instead of {facts['bytes']}; build it again"
            )
        if (thorough or total <= VERIFIED) and sha256(file) != facts["sha256"]:
            raise StoreError(f"{folder} is damaged: the contents of {name} have changed; build it again")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def staging_of(folder: Path) -> Path:
    """Where a store is built before it takes its place."""
    return folder.with_name(folder.name + ".building")


def retired_of(folder: Path) -> Path:
    """Where an old store waits while the new one takes its place."""
    return folder.with_name(folder.name + ".old")


def _map(folder: Path, name: str, facts: dict[str, Any]) -> NDArray[Any]:
    shape = tuple(facts["shape"])
    return np.memmap(folder / f"{name}.bin", dtype=facts["dtype"], mode="r", shape=shape)
