"""What is finished of a measurement, kept on disk: a killed one goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def append(journal: Path, record: dict[str, Any]) -> None:
    """Keep one more finished part."""
    with journal.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()


def resume(journal: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that are finished, in order; a torn last line is cut off. A journal that is not there is begun.
    ValueError where it is no journal, or one of another `setting`."""
    lines = journal.read_bytes().split(b"\n") if journal.is_file() else []
    whole = lines[:-1]
    if not whole:
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(json.dumps({"setting": setting}) + "\n")
        return []
    try:
        known, *records = (json.loads(line) for line in whole)
        same = known["setting"] == json.loads(json.dumps(setting))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{journal} is no journal of segue bench: remove it or choose another folder") from None
    if not same:
        raise ValueError(f"{journal} is of another contest: finish that one, remove the file or choose another folder")
    journal.write_bytes(b"".join(line + b"\n" for line in whole))
    return records
