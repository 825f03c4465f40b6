"""The engine's thread under load, with clients that go, deadlines, faults and a full queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from segue.api import Model, Request, make_settings, resolve
from segue.models.engine import Engine
from segue.serve.faults import Fault
from segue.serve.metrics import Metrics
from segue.serve.worker import Ended, Event, Piece, Ticket, Worker

PROMPTS = ["The house on the hill", "Once upon a time there was", "It was a", "In the middle of the night the old man"]
METHODS = ["plain", "prompt_lookup", "lookahead", "token_recycling", "jacobi", "beam", "auto"]


class Inbox:
    """The events of one ticket."""

    def __init__(self, request: Request, n: int = 1, **options: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.ticket = Ticket([request], n, self.events.put, **options)

    def next(self) -> Event:
        return self.events.get(timeout=30)

    def text(self) -> str:
        """Of a ticket with one answer; raises its fault."""
        event = self.next()
        while not isinstance(event, Ended):
            if isinstance(event, Fault):
                raise event
            event = self.next()
        return event.completion.text


def ask(lm: Model, prompt: str, method: str = "plain", **settings: Any) -> Request:
    return Request(lm.encode(prompt), resolve(method), make_settings(**settings))


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def hire(lm: Model) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(max_queue: int = 100, **engine: Any) -> Worker:
        workers.append(Worker(lm, Metrics(), max_queue=max_queue, engine=lambda: Engine(**engine)))
        workers[-1].start()
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop(5)
        assert not worker.ready


def test_users_of_many_methods_share_forwards_and_get_the_answers_of_the_library(
    hire: Callable[..., Worker], lm: Model
) -> None:
    jobs = [(prompt, method) for prompt in PROMPTS for method in METHODS]
    offline = [lm.generate(prompt, method, max_tokens=24) for prompt, method in jobs]
    worker = hire()
    inboxes = [Inbox(ask(lm, prompt, method, max_tokens=24)) for prompt, method in jobs]
    for inbox in inboxes:
        worker.submit(inbox.ticket)
    assert [inbox.text() for inbox in inboxes] == [one.text for one in offline]
    assert worker.engine.forwards < sum(one.stats.target_forwards for one in offline) / 3
    assert worker.engine.reserved == 0


def test_a_ticket_that_nobody_waits_for_frees_its_memory(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire()
    gone = Inbox(ask(lm, PROMPTS[0], max_tokens=1500, ignore_eos=True), n=3, stream=True)
    stays = Inbox(ask(lm, PROMPTS[1], max_tokens=40, ignore_eos=True))
    worker.submit(gone.ticket)
    assert isinstance(gone.next(), Piece)
    worker.submit(stays.ticket)
    sequences = [choice.job.resolved().run.sequence for choice in gone.ticket.open.values()]
    assert any(len(sequence) for sequence in sequences)
    worker.cancel(gone.ticket)
    assert stays.text() == lm.generate(PROMPTS[1], max_tokens=40, ignore_eos=True).text
    until(lambda: worker.engine.reserved == 0)
    assert worker.engine.running == 0
    assert not any(len(sequence) for sequence in sequences)


def test_a_full_queue_is_told_at_once(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire(max_queue=2, max_running=1)
    running = Inbox(ask(lm, PROMPTS[0], max_tokens=1500, ignore_eos=True), stream=True)
    worker.submit(running.ticket)
    running.next()
    waiting = [Inbox(ask(lm, PROMPTS[1], max_tokens=4)) for _ in range(2)]
    for inbox in waiting:
        worker.submit(inbox.ticket)
    with pytest.raises(Fault) as told:
        worker.submit(Inbox(ask(lm, PROMPTS[1])).ticket)
    assert told.value.status == 429
    assert told.value.headers["Retry-After"]
    worker.cancel(running.ticket)
    assert waiting[0].text() == waiting[1].text() == lm.generate(PROMPTS[1], max_tokens=4).text


def test_the_urgent_wait_less(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire(max_running=1)
    first = Inbox(ask(lm, PROMPTS[0], max_tokens=1500, ignore_eos=True), stream=True)
    worker.submit(first.ticket)
    first.next()
    order: list[int] = []
    done = threading.Event()

    def note(priority: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            order.append(priority)
            if len(order) == 3:
                done.set()

        return take

    for priority in (0, -5, 7):
        worker.submit(Ticket([ask(lm, PROMPTS[1], max_tokens=2)], 1, note(priority), priority=priority))
    worker.cancel(first.ticket)
    assert done.wait(20)
    assert order == [7, 0, -5]


def test_a_deadline_counts_waiting_and_running(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire(max_running=1)
    long = ask(lm, PROMPTS[0], max_tokens=1500, ignore_eos=True)
    running, waiting = Inbox(long, seconds=0.3), Inbox(long, seconds=0.1)
    worker.submit(running.ticket)
    worker.submit(waiting.ticket)
    for inbox in (running, waiting):
        fault = inbox.next()
        assert isinstance(fault, Fault)
        assert (fault.status, fault.code) == (504, "deadline_exceeded")
    until(lambda: worker.engine.reserved == 0)


class Broken:
    """A method that fails in the middle of an answer."""

    card = resolve("plain").card

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, run: Any) -> Any:
        yield from run.prefill()
        raise self.error


def test_a_request_that_fails_fails_alone(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire()
    good = Inbox(ask(lm, PROMPTS[0], max_tokens=30))
    settings = make_settings(max_tokens=3)
    secret = Inbox(Request(lm.encode(PROMPTS[1]), Broken(RuntimeError("/home/secret")), settings))
    large = Inbox(ask(lm, PROMPTS[0], max_tokens=1500), n=64)
    dead = Inbox(ask(lm, PROMPTS[0], max_tokens=3, regex="[0-9]{20}"))
    worker.submit(good.ticket)
    for bad, status in ((secret, 500), (dead, 422)):
        worker.submit(bad.ticket)
        with pytest.raises(Fault) as told:
            bad.text()
        assert told.value.status == status
        assert "secret" not in told.value.message
    assert good.text() == lm.generate(PROMPTS[0], max_tokens=30).text
    small = hire(kv_budget=1000)
    small.submit(large.ticket)
    with pytest.raises(Fault) as told:
        large.text()
    assert told.value.status == 400
    assert small.ready
    assert small.engine.reserved == small.engine.waiting == 0


def test_a_bug_of_the_engine_ends_what_runs_and_not_the_server(
    hire: Callable[..., Worker], lm: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = hire()
    inbox = Inbox(ask(lm, PROMPTS[0], max_tokens=1000, ignore_eos=True), stream=True)
    worker.submit(inbox.ticket)
    inbox.next()
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine, "step", lambda: 1 / 0)
        with pytest.raises(Fault) as told:
            inbox.text()
    assert told.value.status == 500
    again = Inbox(ask(lm, PROMPTS[0], max_tokens=5))
    worker.submit(again.ticket)
    assert again.text() == lm.generate(PROMPTS[0], max_tokens=5).text


def test_stopping_finishes_what_was_begun(hire: Callable[..., Worker], lm: Model) -> None:
    worker = hire(max_running=1)
    inboxes = [Inbox(ask(lm, prompt, max_tokens=20)) for prompt in PROMPTS]
    for inbox in inboxes:
        worker.submit(inbox.ticket)
    worker.stop(30)
    with pytest.raises(Fault) as told:
        worker.submit(Inbox(ask(lm, PROMPTS[0])).ticket)
    assert told.value.status == 503
    assert [inbox.text() for inbox in inboxes] == [lm.generate(prompt, max_tokens=20).text for prompt in PROMPTS]
