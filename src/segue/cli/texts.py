"""Texts that commands read: arguments, lines of a file or of stdin, or objects with a "text" in JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli import flags

File = Annotated[
    Path | None,
    typer.Option("--texts", help='One text a line; of a .jsonl file strings, or objects with a "text".'),
]
Lines = Annotated[bool, typer.Option("--jsonl", help="Read stdin as JSON lines.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long; without, they are an error.")]


def read(given: list[str] | None, file: Path | None, jsonl: bool) -> list[dict[str, Any]]:
    """The records, each with a "text". ValueError where there are none, or two sources."""
    if given and file is not None:
        raise ValueError("TEXTS and --texts are two sources: give one of them")
    if given and given != ["-"]:
        return [{"text": text} for text in given]
    if file is not None:
        return _records(flags.read_text(file), jsonl or file.suffix == ".jsonl", str(file))
    if not given and sys.stdin.isatty():
        raise ValueError("no texts: give them as arguments, with --texts or on stdin")
    return _records(flags.text_of(sys.stdin.buffer.read(), "stdin"), jsonl, "stdin")


def _records(data: str, jsonl: bool, source: str) -> list[dict[str, Any]]:
    lines = [(number, line) for number, line in enumerate(data.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{source} has no text")
    return [_record(line, f"{source}, line {number}") if jsonl else {"text": line} for number, line in lines]


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{place} is not JSON") from None
    record = {"text": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(f'{place} is neither a string nor an object with a "text"')
    return record
