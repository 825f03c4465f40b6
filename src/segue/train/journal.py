"""What a run says while it goes: a progress bar or log lines, log.jsonl, and summary.json at the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 20.0  # between log lines where no terminal is attached
SMOOTHING = 0.95


class Journal:
    """Writes down each step of a run; steps logged after `step` by a run that was cut short are dropped."""

    def __init__(self, folder: Path, name: str, step: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.log = folder / "log.jsonl"
        self._say = say
        self._loss = 0.0
        self._weight = 0.0
        self._last_line = self._begun = time.monotonic()
        self._begun_seconds: float | None = None
        self._begun_spent = 0.0
        self._forget_after(step)
        self._file: TextIO
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn(name), BarColumn(), TextColumn("{task.percentage:.1f}% {task.fields[note]}"))
            self._bar = Progress(*columns)
            self._task = self._bar.add_task(name, total=1.0, note="")

    def __enter__(self) -> Self:
        self._file = self.log.open("a")
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._file.close()

    def say(self, text: str) -> None:
        """Pass a line on, above the progress bar where there is one."""
        if self._bar:
            self._bar.console.print(text)
        else:
            self._say(text)

    def step(self, step: int, loss: float, norm: float, tokens: int, seconds: float, spent: float) -> None:
        """Record one gradient step."""
        self._write({"step": step, "loss": round(loss, 4), "norm": round(norm, 3), "tokens": tokens,
                     "seconds": round(seconds, 1)})  # fmt: skip
        self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        if self._begun_seconds is None:
            self._begun_seconds, self._begun_spent = seconds, spent
        left = max(0.0, 1.0 - spent)
        pace = (seconds - self._begun_seconds) / max(spent - self._begun_spent, 1e-9)
        note = (
            f"loss {self._loss / self._weight:.3f}  {tokens / seconds:,.0f} tokens/s  "
            f"{tokens / 1e6:.2f}M tokens  {left * pace / 60:.0f} min left"
        )
        if self._bar:
            self._bar.update(self._task, completed=min(spent, 1.0), note=note)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._say(f"{spent:6.1%}  step {step}  {note}")

    def scores(self, step: int, scores: dict[str, dict[str, float]], told: Sequence[str]) -> None:
        """Record a held-out evaluation, and pass on the measures in `told` of those that have them."""
        self._write({"step": step, "heldout": scores})
        for name in told:
            known = {part: values[name] for part, values in scores.items() if name in values}
            if known:
                self.say(f"held-out {name}  " + "  ".join(f"{part} {value:.1f}" for part, value in known.items()))

    def finish(self, summary: dict[str, Any], told: Sequence[str]) -> dict[str, Any]:
        """Write summary.json and return it."""
        self.scores(summary["steps"], summary["heldout"], told)
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        return summary

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _forget_after(self, step: int) -> None:
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the line a killed run was writing
        staging = self.log.with_suffix(".new")
        staging.write_text("".join(line + "\n" for line in kept))
        os.replace(staging, self.log)
