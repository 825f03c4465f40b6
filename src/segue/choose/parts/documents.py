"""A store of documents that a model recalls from: titles and texts, spelled in its tokens."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.models.constraint import spelling
from segue.models.lm import LM

KEPT = 32  # stores (and compiled grammars) kept per model
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """One document. Without a tokenizer `text` and `offsets` are empty, and token ids are all there is."""

    title: str
    text: str
    titles: tuple[Ids, ...]  # the ways in which its title may be written: with a space before it and without
    ids: Ids  # of its text
    offsets: tuple[tuple[int, int], ...] = ()  # characters of each token

    def find(self, run: Ids) -> int | None:
        """Where a run of its tokens stands first; None where it does not."""
        count = len(run)
        return next((i for i in range(len(self.ids) - count + 1) if self.ids[i : i + count] == run), None)

    def whole(self, start: int, stop: int) -> tuple[int, int]:
        """Tokens start..stop-1, moved so that no character is cut at either end."""
        spans = self.offsets
        while spans and start > 0 and spans[start][0] < spans[start - 1][1]:
            start -= 1
        while spans and start + 1 < stop < len(spans) and spans[stop][0] < spans[stop - 1][1]:
            stop -= 1
        return start, stop

    def characters(self, start: int, stop: int) -> tuple[int, int]:
        """Where the text of tokens start..stop-1 stands in the document."""
        return (self.offsets[start][0], self.offsets[stop - 1][1]) if self.offsets else (0, 0)


Documents = tuple[Document, ...]


def stored(lm: LM, path: str) -> Documents:
    """The documents of a JSONL file, spelled once per model. ValueError that names the line where one is wrong."""
    try:
        stamp = os.stat(path).st_mtime_ns
    except OSError as trouble:
        raise ValueError(f"documents={path!r} cannot be read: {trouble.strerror}") from None
    kept: Any = lm.compiled
    key = "documents", os.path.abspath(path), stamp, lm.eos_ids
    if key not in kept:
        kept[key] = tuple(_spelled(lm, *record) for record in read_documents(path))
        if len(kept) > KEPT:
            kept.popitem(last=False)
    found: Documents = kept[key]
    return found


def read_documents(path: str) -> list[tuple[str, str, str]]:
    """(place in the file, title, text) of every document."""
    found = []
    for number, raw in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        place = f"{path} line {number}"
        if not raw.strip():
            continue
        try:
            record = json.loads(raw.decode())
        except UnicodeDecodeError as trouble:
            raise ValueError(f"{place} is not UTF-8: byte 0x{raw[trouble.start]:02x}") from None
        except json.JSONDecodeError as trouble:
            raise ValueError(f"{place} is not JSON: {trouble.msg} at character {trouble.pos}") from None
        if not isinstance(record, dict):
            raise ValueError(f'{place} is not an object: give {{"title": ..., "text": ...}}')
        for name in ("title", "text"):
            value = record.get(name)
            if not isinstance(value, str) or not value.strip():
                what = f"is {json.dumps(value)[:40]}" if name in record else "is missing"
                raise ValueError(f'{place}: "{name}" {what}, where a text is needed')
        found.append((place, record["title"].strip(), record["text"]))
    if not found:
        raise ValueError(f'{path} has no document: give {{"title": ..., "text": ...}} on every line')
    return found


def _spelled(lm: LM, place: str, title: str, text: str) -> Document:
    try:
        titles = tuple(dict.fromkeys(tuple(spelling(form, lm)) for form in (" " + title, title)))
        ids = tuple(lm.encode(text, special=False))
    except ValueError as trouble:
        raise ValueError(f"{place}: {trouble}") from None
    end = next((token for token in (*ids, *sum(titles, ())) if token in lm.eos_ids), None)
    if end is not None:
        raise ValueError(f"{place}: it has token {end}, which ends a text of {lm.name}: take it out")
    spans: list[tuple[int, int]] = []
    if getattr(lm.tokenizer, "is_fast", False):
        known = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(int(a), int(b)) for a, b in known["offset_mapping"]]
    else:
        said = [lm.decode(ids[:i]) for i in range(len(ids) + 1)]
        whole = [len(text.rstrip("\ufffd")) for text in said]  # a piece of a character stands for all of it
        spans = [(whole[i], whole[i + 1] + said[i + 1].endswith("\ufffd")) for i in range(len(ids))]
    return Document(title, text, titles, ids, tuple(spans))
