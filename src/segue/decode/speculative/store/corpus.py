"""Texts to build a datastore from or to learn from: JSON lines, or plain text files of one document each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.decode.speculative.store.base import sha256
from segue.models.lm import LM


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a prompt and its answer (none where the model is to answer), and where it stands."""

    place: str
    text: str
    answer: str | None = None

    def ids(self, lm: LM) -> list[int]:
        """Its token ids, cut between prompt and answer as they are when the model answers."""
        ids = lm.encode(self.text)
        return ids + lm.encode(self.answer, special=False) if self.answer else ids


@dataclass(frozen=True)
class Corpus:
    """Documents, and the files that they come from with what identifies these."""

    documents: list[Document]
    files: list[dict[str, Any]]


def read_corpus(paths: Iterable[Path], prompts: bool = False, purpose: str = "put into a datastore") -> Corpus:
    """Read files: NAME.jsonl with "text" or "prompt" and "response" on every line, anything else as one plain text.

    With `prompts` every document is a prompt that the model will answer; responses are left out. `purpose` says what is
    done with the texts, for errors. Raises ValueError naming the file and line that is wrong.
    """
    documents: list[Document] = []
    files = []
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name the files, e.g. {path}/*.jsonl")
        before = len(documents)
        if path.suffix in (".jsonl", ".ndjson"):
            lines = path.read_bytes().split(b"\n")
            documents += [_line(f"{path} line {n}", raw, prompts) for n, raw in enumerate(lines, 1) if raw.strip()]
        else:
            text = _decoded(path.read_bytes(), str(path))
            if text.strip():
                documents.append(Document(str(path), text))
        if len(documents) == before:
            raise ValueError(f"{path} is empty: there is nothing to {purpose}")
        files.append({"path": str(path), "sha256": sha256(path), "documents": len(documents) - before})
    return Corpus(documents, files)


def _line(place: str, raw: bytes, prompts: bool) -> Document:
    try:
        record = json.loads(_decoded(raw, place))
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(record, dict):
        raise ValueError(f'{place} is not an object: give {{"text": ...}} or {{"prompt": ..., "response": ...}}')
    names = ("text",) if "text" in record else ("prompt",) if prompts else ("prompt", "response")
    values = []
    for name in names:
        if name not in record and name == "response":
            raise ValueError(f'{place} has a "prompt" but no "response": add it, or let the model answer (--respond N)')
        if name not in record:
            raise ValueError(f'{place} has neither "text" nor "prompt": it has {", ".join(record) or "nothing"}')
        if not isinstance(record[name], str) or (not record[name] and name != "response"):
            raise ValueError(f'{place}: "{name}" is {json.dumps(record[name])[:40]}, which is not a text')
        values.append(record[name])
    return Document(place, *values)


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None
