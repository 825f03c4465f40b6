"""The one thread beside the engine's, for encoders: their requests come in through a bounded queue and take turns.

A request is a generator that pauses after each text. The thread steps those that are open one after the other, so that
a large one does not hold a small one up, and one that nobody waits for ends at its next pause.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from starlette.requests import Request as HttpRequest

from segue.serve.faults import Fault, failed, full, gone, late
from segue.serve.metrics import Metrics

T = TypeVar("T")
Work = Generator[None, None, T]


@dataclass(eq=False)
class Turn:
    """One request."""

    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    ends: float  # on the monotonic clock
    seconds: float
    gone: bool = False

    def settle(self, value: Any, fault: Fault | None) -> None:
        """Tell the one who waits, from the thread."""

        def tell() -> None:
            if self.answer.done():
                return
            if fault is None:
                self.answer.set_result(value)
            else:
                self.answer.set_exception(fault)

        self.work.close()
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self.loop.call_soon_threadsafe(tell)


class Turns:
    """Runs generators in its own thread, one step of each at a time."""

    def __init__(self, metrics: Metrics, *, max_queue: int) -> None:
        self.metrics = metrics
        self.max_queue = max_queue
        self._wake = threading.Condition()
        self._open: deque[Turn] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segue-encoders", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Take no more requests and finish those that are there; after `timeout` seconds drop what is left."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            for turn in self._open:
                turn.gone = True
        self._thread.join(5)

    async def take(self, http: HttpRequest, work: Work[T], seconds: float) -> T:
        """What a generator returns. Fault 429 where the queue is full, 504 after so many seconds, 499 where the client
        has gone."""
        loop = asyncio.get_running_loop()
        turn = Turn(work, loop, loop.create_future(), time.monotonic() + seconds, seconds)
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise Fault(503, "the server is stopping", code="stopping")
            if len(self._open) >= self.max_queue:
                raise full(len(self._open))
            self._open.append(turn)
            self.metrics.encoder_queue.set(len(self._open))
            self._wake.notify()
        watch = asyncio.create_task(until_gone(http))
        try:
            await asyncio.wait((turn.answer, watch), return_when=asyncio.FIRST_COMPLETED)
            if not turn.answer.done():
                raise gone()
            found: T = turn.answer.result()
            return found
        finally:
            turn.gone = True
            turn.answer.cancel()
            watch.cancel()

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not self._open and not self._stopping:
                        self._wake.wait()
                    if not self._open:
                        return
                    turn = self._open[0]  # stays counted while it is worked on
                end = self._step(turn)
                with self._wake:
                    self._open.popleft()
                    if end is None:
                        self._open.append(turn)
                    self.metrics.encoder_queue.set(len(self._open))
                if end is not None:  # told last: who has an answer finds its place in the queue free
                    turn.settle(*end)

    def _step(self, turn: Turn) -> tuple[Any, Fault | None] | None:
        """One text of a request; where it is over, what it came to."""
        if turn.gone:
            return None, gone()
        if time.monotonic() > turn.ends:
            return None, late(turn.seconds)
        try:
            next(turn.work)
        except StopIteration as end:
            return end.value, None
        except Exception as error:
            return None, failed(error)
        return None


async def until_gone(http: HttpRequest) -> None:
    """Until the client leaves."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
