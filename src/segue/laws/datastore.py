"""Datastores for the laws: texts of a model's own, right ones and others, so that drafts are kept and refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

from segue import catalog
from segue.data import Settings
from segue.decode.speculative.store.base import identity
from segue.decode.speculative.store.build import Kind, build
from segue.decode.speculative.store.dense import Dense
from segue.decode.speculative.store.suffix import Suffix
from segue.decode.speculative.store.trigram import build as count_trigrams
from segue.laws.base import decode
from segue.laws.worlds import prompts
from segue.models.lm import LM

TOKENS = 90  # of an answer, as far as the context allows
_folders: WeakKeyDictionary[LM, Path] = WeakKeyDictionary()


def suffix(lm: LM) -> dict[str, Any]:
    """The field of a method that needs a suffix store."""
    return {"index": _store(lm, Suffix())}


def dense(lm: LM) -> dict[str, Any]:
    """The field of a method that needs a dense store."""
    return {"index": _store(lm, Dense(dims=16))}


def trigram(lm: LM) -> dict[str, Any]:
    """The field of a method that reads a table of trigrams."""
    path = _folder(lm) / "trigrams"
    if not path.is_file():
        count_trigrams(texts(lm), path, identity(lm))
    return {"table": str(path)}


def texts(lm: LM) -> list[list[int]]:
    """The prompts of the model's world with its greedy answer, and with two that it might give."""
    ways: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.5, "seed": 2}]
    plain = catalog.build("plain")
    asked = prompts(lm)
    # One goes on from its own answer, as the laws do: to an encoder-decoder that is another source.
    (start,) = decode(lm, plain, asked[:1], Settings(max_tokens=24, ignore_eos=True))
    asked.append([*asked[0], *start.tokens])
    found = []
    for way in ways:
        settings = Settings(max_tokens=TOKENS, ignore_eos=True, **way)
        answers = decode(lm, plain, asked, settings)
        found += [[*p, *a.tokens] for p, a in zip(asked, answers, strict=True)]
    return found


def _store(lm: LM, kind: Kind) -> str:
    folder = _folder(lm) / kind.kind
    if not folder.is_dir():
        build(folder, kind, lm, texts(lm), _as_it_is)
    return str(folder)


def _folder(lm: LM) -> Path:
    if lm not in _folders:
        _folders[lm] = Path(tempfile.mkdtemp(prefix="segue-store-"))
        finalize(lm, shutil.rmtree, _folders[lm], ignore_errors=True)
    return _folders[lm]


def _as_it_is(texts: Sequence[list[int]]) -> list[list[int]]:
    return list(texts)
