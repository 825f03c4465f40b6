"""Signals that stop decoding between two forwards, so that nothing is left half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from segue.models.engine import Engine


class Stopped(KeyboardInterrupt):
    """A signal ended the decoding. Like its base it is no Exception: an engine must not book it on a request."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """While entered, the first signal is remembered for `StoppableEngine`; a second one raises `Stopped` at once."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._waiting = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in self.numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what only waits for others and may wait for long: a signal raises `Stopped` there."""
        self._waiting = True
        try:
            if self.received is not None:
                raise Stopped(self.received)
            yield
        finally:
            self._waiting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        before, self.received = self.received, number
        if self._waiting or before is not None:
            self._waiting = False  # once: what cleans up on the way out is not interrupted
            raise Stopped(number)


class StoppableEngine(Engine):
    """An engine that looks for a signal before every forward: by then all finished answers have been handed out."""

    def __init__(self, signals: Signals, **budgets: Any) -> None:
        super().__init__(**budgets)
        self._signals = signals

    def step(self) -> None:
        if self._signals.received is not None:
            raise Stopped(self._signals.received)
        super().step()
