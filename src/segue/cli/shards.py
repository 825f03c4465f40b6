"""Where the lines of `segue run` come from: one file, or a folder of shards, each JSONL or Parquet."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARQUET = ".parquet"
SUFFIXES = (".jsonl", PARQUET)  # of a folder's files; a single file may be called anything
ROWS = 1024  # of a Parquet file that are held at a time


class Shards:
    """The input, in the order of the files' names. It is read twice, so that two lines with one id are found before any
    work is done. Lines are numbered through all files."""

    def __init__(self, path: Path) -> None:
        """ValueError where there is nothing to read."""
        self.path = path
        self.files = [path]
        if path.is_dir():
            self.files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not self.files:
                raise ValueError(f"{path} has no files to answer: none ends in {' or '.join(SUFFIXES)}")
        for file in self.files:
            if not stat.S_ISREG(file.stat().st_mode):
                raise ValueError(f"{file} is not a regular file, and the input is read twice: save it to a file first")
            if file.suffix == PARQUET:
                _parquet(file)
        self._first: list[int] = []  # number of the first line of every file that was begun

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its number, from the start; empty lines are counted and passed over."""
        self._first = []
        number = 0
        for file in self.files:
            self._first.append(number + 1)
            for line in _rows(file) if file.suffix == PARQUET else _lines(file):
                number += 1
                if line.strip():
                    yield number, line

    def place(self, number: int) -> str:
        """Where a line is that was read already, in words."""
        if len(self.files) == 1:
            return f"line {number}"
        index, first = max((i, first) for i, first in enumerate(self._first) if first <= number)
        return f"line {number - first + 1} of {self.files[index].name}"

    def holds(self, other: Path) -> bool:
        """Whether a file is one of the input's, or would be read as one the next time."""
        shard = self.path.is_dir() and other.suffix in SUFFIXES and other.resolve().parent == self.path.resolve()
        return shard or (other.exists() and any(other.samefile(file) for file in self.files))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _rows(path: Path) -> Iterator[bytes]:
    """Rows as the JSON lines that would say the same. Parquet has every column in every row: an empty one is a key that
    a line would not have."""
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                yield json.dumps(_present(row), ensure_ascii=False, default=_unfit).encode("utf-8", "backslashreplace")


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(part) for key, part in value.items() if part is not None}
    return [_present(part) for part in value] if isinstance(value, list) else value


def _unfit(value: Any) -> str:
    """What JSON has no form for is told as text: a column that means nothing here is no fault of its line."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{path} is read by pyarrow: pip install "segue[ray]"') from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
