"""What the lines of `segue run` ask for: one JSON object a line, each with an id."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from segue.cli import settings
from segue.cli.shards import Shards

OWN_KEYS = ("id", "prompt", "messages", "method", "set")
Key = str | int | tuple[str, int]  # an id, or ("line", number) where a line is too broken to have one


@dataclass(frozen=True)
class Task:
    """One line of the input. `error` says why it cannot be read; then it has no body."""

    line: int
    id: str | int | None
    body: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> Key:
        return ("line", self.line) if self.id is None else self.id

    def head(self) -> dict[str, Any]:
        """How the answer names the line it belongs to."""
        return {"id": None, "line": self.line} if self.id is None else {"id": self.id}


@dataclass(frozen=True)
class Survey:
    """What a first look at the input found."""

    keys: set[Key]
    ignored: dict[str, int]  # keys that mean nothing here -> lines that have them


def read(shards: Shards) -> Iterator[Task]:
    """All tasks from the start of the input."""
    for number, line in shards:
        yield parse(number, line, shards.place(number))


def survey(shards: Shards) -> Survey:
    """Look through the whole input; ValueError where an id comes twice."""
    lines: dict[Key, int] = {}
    ignored: dict[str, int] = {}
    for task in read(shards):
        other = lines.setdefault(task.key, task.line)
        if other != task.line:
            default = "" if "id" in task.body else " (a line without an id has its number)"
            places = f"on {shards.place(other)} and on {shards.place(task.line)}"
            raise ValueError(f"{shards.path}: id {task.id!r} is {places}{default}; ids are unique")
        for key in task.body:
            if not known(key) and near(key) is None:
                ignored[key] = ignored.get(key, 0) + 1
    return Survey(set(lines), ignored)


def parse(number: int, line: bytes, place: str) -> Task:
    """The task on a line, whatever the line holds; `place` is how errors name it."""
    try:
        body = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Task(number, None, error=f"{place} is not UTF-8: byte 0x{line[error.start]:02x} at {error.start}")
    except (ValueError, RecursionError) as error:
        return Task(number, None, error=f"{place} is not JSON: {error}")
    if not isinstance(body, dict):
        return Task(number, None, error=f"{place} is not a JSON object")
    own = body.get("id", number)
    if not isinstance(own, str | int) or isinstance(own, bool):
        return Task(number, None, error=f"{place}: id {own!r} is neither text nor a whole number")
    return Task(number, own, body)


def key(record: Mapping[str, Any]) -> Key:
    """Which line an answer belongs to."""
    own: Key = ("line", record["line"]) if record["id"] is None else record["id"]
    return own


def known(key: str) -> bool:
    return key in OWN_KEYS or key in setting_names()


@functools.lru_cache(maxsize=1000)
def near(key: str) -> str | None:
    """The key that this one was probably meant to be."""
    close = difflib.get_close_matches(key, (*OWN_KEYS, *setting_names()), n=1, cutoff=0.75)
    return close[0] if close else None


@functools.cache
def setting_names() -> tuple[str, ...]:
    return tuple(f.name for f in settings.fields())
