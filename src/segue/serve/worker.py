"""The one thread that owns the engine and the model: requests come in through a bounded queue, events go out.

Nothing else touches the model, so users of different methods share each forward and none needs a lock. Requests wait by
priority, then by arrival; an urgent one overtakes those that wait, never those that run.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from segue.api import Model, Request, answer, withdraw
from segue.data import Completion, TokenLogprob
from segue.models.engine import Engine
from segue.models.job import Job
from segue.models.run import Run
from segue.serve.faults import Fault, failed, full, late, log
from segue.serve.metrics import Metrics

IDLE = 1.0  # seconds without work after which memory goes back to the system


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice that is certain by now, with the tokens that came since the last piece."""

    choice: int
    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is finished; `rest` is what its pieces have not given yet."""

    choice: int
    rest: Piece
    completion: Completion
    reused: int  # tokens of the prompt that an earlier request had read
    prompt: list[TokenLogprob]  # of its tokens, where they were asked for


Event = Piece | Ended | Fault


@dataclass(eq=False)
class Ticket:
    """A request in the server: prompts that are answered n times each. Choice i * n + j is sample j of prompt i."""

    requests: list[Request]
    n: int
    deliver: Callable[[Event], None]  # called by the worker's thread
    stream: bool = False
    priority: int = 0  # higher is sooner
    seconds: float = float("inf")  # that it may take
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    open: dict[int, Choice] = field(default_factory=dict)

    @property
    def expired(self) -> bool:
        return time.monotonic() - self.arrived > self.seconds


@dataclass(eq=False)
class Choice:
    """How far one answer has been given out."""

    job: Job
    tokens: int = 0
    logprobs: int = 0
    last: float = 0.0

    def piece(self, number: int, run: Run, text: str) -> Piece:
        """What came since the last piece. An end of text is a token that says nothing: it is left out."""
        details = (run.logprobs or [])[self.logprobs :]
        self.logprobs += len(details)
        if details and run.finish_reason is not None and run.is_end(details[-1].token):
            details.pop()
        return Piece(number, text, details)


class Worker:
    """Runs the engine while there are tickets."""

    def __init__(
        self, model: Model, metrics: Metrics, *, max_queue: int, engine: Callable[[], Engine] = Engine
    ) -> None:
        self.model = model
        self.metrics = metrics
        self.max_queue = max_queue
        self.told: Callable[[], None] = lambda: None  # called by the worker's thread after the events of a step
        self._make = engine
        self._engine = engine()
        self._wake = threading.Condition()
        self._queue: list[tuple[int, int, Ticket]] = []
        self._order = itertools.count()
        self._running: list[Ticket] = []
        self._stopping = False
        self._warmed = False
        self._thread = threading.Thread(target=self._work, name="segue-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def _open(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def ready(self) -> bool:
        return self._warmed and self._open

    @property
    def engine(self) -> Engine:
        """To look at, not to step."""
        return self._engine

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; its events follow through `deliver`. Fault 429 where the queue is full, 503 while the server
        stops."""
        with self._wake:
            if not self._open:
                raise Fault(503, "the server is stopping", code="stopping")
            if len(self._queue) >= self.max_queue:
                raise full(len(self._queue))
            heapq.heappush(self._queue, (-ticket.priority, next(self._order), ticket))
            self.metrics.queued.set(len(self._queue))
            self._wake.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket any more: it ends before the next forward, and its memory is free."""
        with self._wake:
            ticket.cancelled = True
            self._wake.notify()

    def stop(self, timeout: float) -> None:
        """Take no more tickets, finish those that are there, and end the thread; after `timeout` seconds cancel what is
        left."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            for ticket in (*self._running, *(ticket for *_, ticket in self._queue)):
                ticket.cancelled = True
        self._thread.join(5)

    def _work(self) -> None:
        with torch.no_grad():
            self._warm()
            while self._wait():
                try:
                    self._drop()
                    self._admit()
                    self._step()
                except Exception as error:  # a bug of the engine itself: everyone in it is told, and it starts anew
                    log.error("the engine failed", exc_info=error)
                    for ticket in self._running:
                        ticket.deliver(failed(error))
                    self._running.clear()
                    self._engine = self._make()
                self.told()

    def _warm(self) -> None:
        """What the first request would have to wait for."""
        lm = self.model.lm
        if lm.tokenizer is not None:
            lm.encode("a")  # a tokenizer may change itself when it is first used; later it is read from many threads
        log.debug("a forward of one row takes %.4f s", lm.cost.step(1))  # measured once
        self._warmed = True

    def _wait(self) -> bool:
        """Until there is work; False when all is done and the server stops."""
        with self._wake:
            fresh = True
            while not self._queue and not self._running and not self._stopping:
                if not self._wake.wait(IDLE if fresh else None) and fresh:
                    fresh = False
                    return_memory()
            return bool(self._queue or self._running)

    def _drop(self) -> None:
        """End what nobody waits for, or what took too long."""
        with self._wake:
            gone = [entry for entry in self._queue if entry[-1].cancelled or entry[-1].expired]
            if gone:
                self._queue = [entry for entry in self._queue if entry not in gone]
                heapq.heapify(self._queue)
        gone_running = [ticket for ticket in self._running if ticket.cancelled or ticket.expired]
        for ticket in (*(ticket for *_, ticket in gone), *gone_running):
            self._end(ticket)
            if not ticket.cancelled:
                ticket.deliver(late(ticket.seconds))
        self._running = [ticket for ticket in self._running if ticket not in gone_running]

    def _admit(self) -> None:
        """Hand tickets to the engine while it has places. It keeps the order of arrival, so those that must wait do so
        here, by priority."""
        room = 0 if self._engine.waiting else self._engine.max_running - self._engine.running
        while room > 0:
            with self._wake:
                if not self._queue:
                    break
                *_, ticket = heapq.heappop(self._queue)
            try:
                for request in ticket.requests:
                    for job in self.model.enqueue(self._engine, request, ticket.n):
                        ticket.open[len(ticket.open)] = Choice(job)
            except Exception as error:
                self._end(ticket)
                ticket.deliver(failed(error))
            else:
                self._running.append(ticket)
                room -= len(ticket.open)

    def _step(self) -> None:
        before = self._engine.forwards
        self._engine.step()
        self.metrics.forwards.inc(self._engine.forwards - before)
        self._gauge()
        for ticket in self._running:
            self._tell(ticket)
        self._running = [ticket for ticket in self._running if ticket.open]

    def _gauge(self) -> None:
        self.metrics.queued.set(len(self._queue))
        self.metrics.running.set(self._engine.running)
        self.metrics.kv_bytes.set(self._engine.reserved)
        if self.model.prefixes is not None:
            self.metrics.reuse(self.model.prefixes)

    def _tell(self, ticket: Ticket) -> None:
        """Give out what came with the last forward."""
        for number, choice in list(ticket.open.items()):
            run = choice.job.resolved().run
            self._time(ticket, choice, run)
            if choice.job.finished:
                try:
                    completion = answer(choice.job)
                except Exception as error:
                    self._end(ticket)
                    ticket.deliver(failed(error))
                    return
                del ticket.open[number]
                self.metrics.book(completion.stats)
                rest = choice.piece(number, run, run.text.take_rest())
                ticket.deliver(Ended(number, rest, completion, run.reused, run.prompt_logprobs or []))
            elif ticket.stream and (text := run.text.take()):
                ticket.deliver(choice.piece(number, run, text))

    def _time(self, ticket: Ticket, choice: Choice, run: Run) -> None:
        new = run.stats.tokens - choice.tokens
        if new <= 0:
            return
        now = time.monotonic()
        if not choice.tokens:
            self.metrics.first_token.labels(run.stats.method).observe(now - ticket.arrived)
        else:
            gaps = self.metrics.between_tokens.labels(run.stats.method)
            for _ in range(new):
                gaps.observe((now - choice.last) / new)
        choice.tokens, choice.last = run.stats.tokens, now

    def _end(self, ticket: Ticket) -> None:
        for choice in ticket.open.values():
            withdraw(self._engine, choice.job)
        ticket.open.clear()
        self._gauge()


def return_memory() -> None:
    """Give the allocator's free pages back: after a crowd, glibc would keep gigabytes of them. Elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
