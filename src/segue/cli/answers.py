"""The output of `segue run`: whole lines only, none lost, none twice, whatever interrupts it.

A line is written with as few system calls as the kernel allows and the file is cut back to its last whole line when
one fails. A process that was killed leaves at most one incomplete last line, which the next start cuts off.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segue.cli import report, tasks
from segue.cli.tasks import Key

SYNC_SECONDS = 5.0  # what a power failure may cost at most
BEGINNING = b'{"id": '  # of every line written here


class Answers:
    """The output file, open for appending and locked against a second `segue run`."""

    def __init__(self, path: Path, expected: set[Key]) -> None:
        """Opens `path`; ValueError where it holds anything else than answers to the `expected` ids."""
        self.path = path
        self.failed: set[Key] = set()
        self.done: set[Key] = set()
        self._files: list[int] = []
        self._end = 0
        self._synced = time.monotonic()
        if path.parent != Path() and not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
        try:
            # Links are followed, so that a rewrite replaces the file and not the link.
            self._place = path.resolve()
            self._open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666))
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None
        # A device or a pipe takes answers, but there is nothing to read back.
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        try:
            if self._regular:
                self._read(expected)
        except BaseException:
            self.close()
            raise

    @property
    def _file(self) -> int:
        return self._files[-1]

    def _open(self, file: int) -> None:
        self._files.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ValueError(f"another segue run is writing {self.path}: wait for it or end it") from None
        except OSError:
            pass  # a file system without locks: two runs at once are then the user's to avoid

    def _read(self, expected: set[Key]) -> None:
        number = 0
        torn = b""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    torn = line
                    break
                self._take(number, line, expected)
                self._end += len(line)
        if torn:
            if not torn.startswith(BEGINNING[: len(torn)]):
                raise self._foreign(number, "is not an answer")
            os.ftruncate(self._file, self._end)

    def _take(self, number: int, line: bytes, expected: set[Key]) -> None:
        try:
            record = json.loads(line)
            key = tasks.key(record)
            whole = "text" in record or "error" in record
            strange = key not in expected
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise self._foreign(number, "is not an answer")
        if strange:
            raise self._foreign(number, f"answers {record['id']!r}, which is not in the input")
        if key in self.done:
            raise self._foreign(number, f"answers {record['id']!r} a second time")
        self.done.add(key)
        if "error" in record:
            self.failed.add(key)

    def _foreign(self, number: int, what: str) -> ValueError:
        return ValueError(
            f"{self.path} is not the output of this job (line {number} {what}): it is left as it is; name another -o"
        )

    def drop_failed(self) -> int:
        """Take the lines with errors out, by writing a new file and renaming it; gives their number."""
        count = len(self.failed)
        if not count:
            return 0
        file, name = tempfile.mkstemp(prefix=f".{self._place.name}.", dir=self._place.parent)
        try:
            with open(self._file, "rb", closefd=False) as old, open(file, "wb", closefd=False) as new:
                old.seek(0)
                new.writelines(line for line in old if "error" not in json.loads(line))
            os.fsync(file)
            shutil.copymode(self._place, name)
            end = os.lseek(file, 0, os.SEEK_END)
            # The old file stays open: its lock keeps out whoever opened it before it was replaced.
            self._open(file)
            os.replace(name, self._place)
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ValueError(f"cannot rewrite {self.path}: {error.strerror}; it is as it was") from None
            raise
        self._sync_folder()
        self._end = end
        self.done -= self.failed
        self.failed = set()
        return count

    def write(self, key: Key, record: dict[str, Any]) -> None:
        """Append a line; OSError where it could not be written, and then the file ends before it."""
        data = memoryview((report.as_json(record) + "\n").encode())
        try:
            left = data
            while left:
                left = left[os.write(self._file, left) :]
            self._end += len(data)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            if self._regular:
                os.ftruncate(self._file, self._end)
            raise OSError(
                f"cannot write {self.path}: {error.strerror}; {len(self.done):,} answers are safe there: "
                "make room and continue with the same command"
            ) from None
        self.done.add(key)
        if "error" in record:
            self.failed.add(key)

    def sync(self) -> None:
        """Have the disk keep what was written so far."""
        if self._regular:
            os.fsync(self._file)
        self._synced = time.monotonic()

    def _sync_folder(self) -> None:
        folder = os.open(self._place.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()
