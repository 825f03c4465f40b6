"""How far a job is: its answers go into their file here, are counted, and move the bar on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from segue.cli.answers import Answers
from segue.cli.tasks import Key


class Tally:
    """Entered while lines are answered."""

    def __init__(self, answers: Answers, total: int) -> None:
        self.answers = answers
        self.total = total
        self.before = len(answers.done)
        self.tokens = 0
        self.forwards = 0
        self.workers = 0  # of Ray
        self.seconds = 0.0
        self._began = 0.0
        self._bar = Bar(answers, total)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if not isinstance(error, OSError):  # which a disk that fails would only raise again
            self.answers.sync()
        self.seconds += time.perf_counter() - self._began

    def add(self, key: Key, record: Mapping[str, Any]) -> None:
        """Write an answer. What is answered already stays as it is: a worker's lines are done again after its end."""
        if key in self.answers.done:
            return
        self.answers.write(key, dict(record))
        self.tokens += record.get("stats", {}).get("tokens", 0)
        self._bar.update(self.tokens)

    def summary(self) -> dict[str, Any]:
        return {
            "prompts": self.total,
            "answered": len(self.answers.done) - self.before,
            "skipped": self.before,
            "failed": len(self.answers.failed),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 2) if self.seconds else 0.0,
            "forwards": self.forwards,
        }


class Bar:
    """A progress bar on stderr where that is a terminal."""

    def __init__(self, answers: Answers, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._answers = answers
        self._began = 0.0
        note = TextColumn("{task.fields[note]}")
        columns = (BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(),
                             redirect_stdout=False)  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=len(answers.done), note="")

    def start(self) -> None:
        self._began = time.perf_counter()
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def update(self, tokens: int) -> None:
        note = f"{tokens / (time.perf_counter() - self._began):,.1f} tokens/s"
        if self._answers.failed:
            note += f", {len(self._answers.failed):,} failed"
        self._bar.update(self._task, completed=len(self._answers.done), note=note)
