"""Builds a datastore that survives being killed: shards in a staging folder, a journal, one rename at the end.

1. The plan (kind, options, model, corpus) is written down; going on demands the same plan.
2. Per shard of documents: append to the arrays, sync, then add a line to the journal. What lies behind the journal's
   last whole line when a build goes on is cut away.
3. Make what needs the whole corpus (suffix array, projection and index), write meta.json, sync.
4. Rename the folder into its place. An old store stays until then.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segue.decode.speculative.store.base import (
    FORMAT,
    META,
    SEPARATOR,
    Progress,
    StoreError,
    identity,
    retired_of,
    sha256,
    staging_of,
)
from segue.models.lm import LM

PLAN, JOURNAL, LOCK = "plan.json", "journal.jsonl", "lock"
SHARD = 32  # documents between two lines of the journal

T = TypeVar("T")


class Kind(Protocol):
    """What a kind of store keeps; a dataclass whose fields are its options."""

    @property
    def kind(self) -> str: ...
    @property
    def transient(self) -> tuple[str, ...]: ...  # arrays of `read` that only `finish` needs
    def read(self, lm: LM, documents: list[list[int]]) -> dict[str, NDArray[Any]]: ...
    def finish(self, folder: Path, tokens: NDArray[np.int32], progress: Progress) -> dict[str, NDArray[Any]]: ...


def build(
    path: str | os.PathLike[str],
    kind: Kind,
    lm: LM,
    documents: Sequence[T],
    read: Callable[[Sequence[T]], list[list[int]]],
    *,
    corpus: Any = None,
    command: str = "",
    force: bool = False,
    resume: bool = False,
    shard: int = SHARD,
    progress: Progress = lambda stage, done, of: None,
) -> Path:
    """Build a store of documents for a model and put it at `path`.

    `read` gives the token ids of some documents (encoded, or answered by the model). `corpus` is kept as what they came
    from, and tells whether an unfinished build is of the same. Raises StoreError where something is in the way that
    neither `force` (replace) nor `resume` (go on) allows to touch.
    """
    folder = Path(path)
    plan = {"format": FORMAT, "kind": kind.kind, "options": dict(vars(kind)), "model": identity(lm), "corpus": corpus}
    plan |= {"documents": len(documents)}
    plan = json.loads(json.dumps(plan))
    with _staging(folder, plan, force, resume) as staging:
        done = staging.documents
        while done < len(documents):
            progress("reading", done, len(documents))
            texts = read(documents[done : done + shard])
            _check(texts, lm, done)
            done += len(texts)
            tokens = [np.array([*text, SEPARATOR], dtype=np.int32) for text in texts]
            staging.append(done, {"tokens": np.concatenate(tokens)} | kind.read(lm, texts))
        progress("reading", done, len(documents))
        return staging.finish(kind, plan | {"command": command}, progress)


def _check(texts: list[list[int]], lm: LM, before: int) -> None:
    for number, text in enumerate(texts, start=before + 1):
        bad = next((t for t in text if not 0 <= t < lm.vocab_size), None)
        if bad is not None:
            raise StoreError(f"document {number} has token id {bad}, outside the vocabulary of {lm.name}")


def may_build(path: str | os.PathLike[str], force: bool, resume: bool) -> None:
    """Raise StoreError where something is in the way of a build, before a model is loaded for it."""
    folder = Path(path)
    staging, retired = staging_of(folder), retired_of(folder)
    if not folder.absolute().parent.is_dir():
        raise StoreError(f"there is no folder {folder.absolute().parent}")
    if retired.is_dir():  # a build was killed while it put its store into its place
        shutil.rmtree(retired) if folder.exists() else retired.rename(folder)
    if folder.exists():
        if not (folder / META).is_file():
            raise StoreError(f"{folder} is there already and is no datastore: name another folder")
        if not force and not (resume and staging.is_dir()):
            raise StoreError(f"{folder} is there already: --force replaces it once the new one is whole")
    if staging.is_dir() and not (force or resume):
        raise StoreError(f"{staging} is an unfinished build: --resume goes on with it, --force starts afresh")


@contextmanager
def _staging(folder: Path, plan: dict[str, Any], force: bool, resume: bool) -> Iterator[Staging]:
    """The staging folder, locked. After an error it stays, for a build that goes on."""
    may_build(folder, force, resume)
    staging = staging_of(folder)
    staging.mkdir(exist_ok=True)
    with (staging / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"{folder} is being built by another process") from None
        if (staging / PLAN).is_file() and not resume:
            for file in staging.iterdir():
                if file.name != LOCK:
                    file.unlink()
        yield Staging(folder, staging, plan)


class Staging:
    """A store in the making."""

    def __init__(self, folder: Path, staging: Path, plan: dict[str, Any]) -> None:
        self.folder, self.staging = folder, staging
        file, journal = staging / PLAN, staging / JOURNAL
        self.documents = 0
        self.arrays: dict[str, dict[str, Any]] = {}
        if not file.is_file():
            for stray in staging.iterdir():
                if stray.name != LOCK:
                    stray.unlink()
            _write(file, json.dumps(plan))
            return
        _same_plan(file, plan, staging)
        kept = b""
        for line in journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.documents, self.arrays = entry["documents"], entry["arrays"]
            kept += line
        journal.write_bytes(kept)
        for name, facts in self.arrays.items():
            os.truncate(staging / f"{name}.bin", _size(facts))
        for stray in staging.glob("*.bin"):
            if stray.stem not in self.arrays:
                stray.unlink()

    def append(self, documents: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Add rows to the arrays, then to the journal that so many documents are read."""
        for name, rows in arrays.items():
            facts = self.arrays.setdefault(name, {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]]})
            assert [facts["dtype"], facts["shape"][1:]] == [rows.dtype.str, list(rows.shape[1:])]
            with (self.staging / f"{name}.bin").open("ab") as file:
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                os.fsync(file.fileno())
            facts["shape"][0] += len(rows)
        self.documents = documents
        with (self.staging / JOURNAL).open("a") as journal:
            journal.write(json.dumps({"documents": documents, "arrays": self.arrays}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def finish(self, kind: Kind, facts: dict[str, Any], progress: Progress) -> Path:
        """Make what needs all documents, and put the store into its place."""
        if not self.arrays or self.arrays["tokens"]["shape"][0] <= self.documents:
            raise StoreError(f"the corpus holds no tokens in {self.documents} documents")
        tokens = np.memmap(self.staging / "tokens.bin", dtype=np.int32, mode="r")
        for name, rows in kind.finish(self.staging, tokens, progress).items():
            rows.tofile(self.staging / f"{name}.bin")
            self.arrays[name] = {"dtype": rows.dtype.str, "shape": list(rows.shape)}
        arrays = {name: facts for name, facts in self.arrays.items() if name not in kind.transient}
        passing = [PLAN, JOURNAL, LOCK, *(f"{name}.bin" for name in kind.transient)]  # the plan goes first
        files = [file for file in sorted(self.staging.iterdir()) if file.name not in (*passing, META)]
        sums = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
        meta = facts | {"tokens": len(tokens) - self.documents, "arrays": arrays, "files": sums}
        _write(self.staging / META, json.dumps(meta, indent=1) + "\n")
        for name in passing:
            (self.staging / name).unlink(missing_ok=True)
        retired = retired_of(self.folder)
        if self.folder.exists():
            self.folder.rename(retired)
        self.staging.rename(self.folder)
        shutil.rmtree(retired, ignore_errors=True)
        return self.folder


def _same_plan(file: Path, plan: dict[str, Any], staging: Path) -> None:
    try:
        before = json.loads(file.read_text())
    except ValueError:
        before = {}
    differing = [key for key, value in plan.items() if before.get(key) != value]
    if differing:
        raise StoreError(f"{staging} is an unfinished build with another {differing[0]}: --force starts afresh")


def _size(facts: dict[str, Any]) -> int:
    size: int = math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize
    return size


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
