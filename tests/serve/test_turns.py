"""The thread of the encoders, with clients that go and a server that stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from segue.serve.faults import Fault
from segue.serve.metrics import Metrics
from segue.serve.turns import Turns


class Client:
    """One that goes when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns(Metrics(), max_queue=4)
    made.start()
    yield made
    made.stop(5)
    assert not made._thread.is_alive()


def test_a_client_that_goes_ends_its_work(turns: Turns) -> None:
    begun, go, closed = threading.Event(), threading.Semaphore(0), threading.Event()
    steps: list[int] = []

    def work() -> Generator[None, None, int]:
        try:
            for step in range(100):
                steps.append(step)
                begun.set()
                assert go.acquire(timeout=30)
                yield
        finally:
            closed.set()
        return 1

    async def ask() -> None:
        client: Any = Client()
        task = asyncio.create_task(turns.take(client, work(), 60))
        await asyncio.to_thread(begun.wait, 30)
        client.gone.set()
        with pytest.raises(Fault) as told:
            await task
        assert told.value.status == 499

    asyncio.run(ask())
    go.release(100)
    assert closed.wait(30)
    assert len(steps) == 1


def test_stopping_finishes_what_was_begun_and_takes_nothing_more(turns: Turns) -> None:
    go = threading.Event()

    def work() -> Generator[None, None, str]:
        yield
        assert go.wait(30)
        return "done"

    async def ask() -> None:
        client: Any = Client()
        task = asyncio.create_task(turns.take(client, work(), 60))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(asyncio.to_thread(turns.stop, 30))
        await asyncio.sleep(0.05)
        with pytest.raises(Fault) as told:
            await turns.take(client, work(), 60)
        assert told.value.status == 503
        go.set()
        assert await task == "done"
        await stopping

    asyncio.run(ask())
