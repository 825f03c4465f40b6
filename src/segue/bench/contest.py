"""Contestants take turns on the same prompts in one process: the only fair way on a machine whose speed drifts.

Per prompt every contestant answers once, in an order that moves on from prompt to prompt. What drafters keep is
emptied before each round, so that a round is a first sight of the prompts. Finished rounds are journalled: a killed run
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from segue.api import Model
from segue.bench.elsewhere import Elsewhere
from segue.bench.journal import append, resume
from segue.data import Settings, Stats
from segue.models.run import peak_memory

Progress = Callable[[int, int], None]  # answers so far, answers in all


class Contestant(Protocol):
    """Somebody who answers prompts."""

    name: str

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        """New tokens, and what they cost where the contestant can say."""

    def forget(self) -> None:
        """Empty what was kept from earlier prompts."""


@dataclass
class Ours:
    """A method of the catalog, with a memory of its own: what another one learned from the same prompt would be a
    look at the answer."""

    name: str
    model: Model
    method: Any
    stores: dict[str, Any] = field(default_factory=dict)

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        self.model.lm.stores = self.stores
        out = self.model.generate(prompt, self.method, **{n: getattr(settings, n) for n in Settings.names()})
        return out.tokens, out.stats

    def forget(self) -> None:
        self.stores.clear()


@dataclass
class Row:
    """What one contestant did."""

    name: str
    seconds: list[list[float]] = field(default_factory=list)  # [round][prompt]
    tokens: list[list[int]] = field(default_factory=list)  # per prompt, of the last round
    stats: list[dict[str, Any]] = field(default_factory=list)  # per prompt, of the last round; empty for peers
    growth: int = 0  # bytes by which its process's peak memory grew while it answered


def contest(
    contestants: Sequence[Contestant],
    prompts: list[list[int]],
    settings: Settings,
    *,
    rounds: int,
    journal: Path | None = None,
    setting: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """Run every contestant on every prompt `rounds` times. `journal`: where finished rounds are kept, readable again
    under the same `setting` only (ValueError otherwise)."""
    rows = [Row(c.name) for c in contestants]
    done = _resume(rows, journal, setting or {})
    total = rounds * len(prompts) * len(rows)
    progress(done * len(prompts) * len(rows), total)
    short = Settings(max_tokens=8)
    for contestant in contestants if done < rounds else ():  # warm-up
        for prompt in (prompts[0], prompts[-1]):
            contestant.answer(prompt, short)
    for turn in range(done, rounds):
        for contestant, row in zip(contestants, rows, strict=True):
            contestant.forget()
            row.seconds.append([0.0] * len(prompts))
            row.tokens, row.stats = [[] for _ in prompts], []
        for number, prompt in enumerate(prompts):
            for step in range(len(rows)):
                at = (step + number + turn) % len(rows)
                _turn(contestants[at], rows[at], number, prompt, settings)
                progress((turn * len(prompts) + number) * len(rows) + step + 1, total)
        if journal is not None:
            append(journal, {"round": turn, "rows": [asdict(row) | {"seconds": row.seconds[-1]} for row in rows]})
    return rows


def _turn(contestant: Contestant, row: Row, number: int, prompt: list[int], settings: Settings) -> None:
    far = contestant if isinstance(contestant, Elsewhere) else None  # its process has a clock and a peak of its own
    peak = far.peak_memory if far else peak_memory
    memory = peak()
    begin = time.perf_counter()
    tokens, stats = contestant.answer(prompt, settings)
    passed = time.perf_counter() - begin
    row.seconds[-1][number] = far.seconds if far else passed
    row.growth += peak() - memory
    row.tokens[number] = tokens
    if stats is not None:
        row.stats.append(stats.as_dict())


def _resume(rows: list[Row], journal: Path | None, setting: dict[str, Any]) -> int:
    """Read finished rounds into the rows; returns how many."""
    records = [] if journal is None else resume(journal, setting)
    for record in records:
        for row, saved in zip(rows, record["rows"], strict=True):
            row.seconds.append(saved["seconds"])
            row.tokens, row.stats, row.growth = saved["tokens"], saved["stats"], saved["growth"]
    return len(records)
