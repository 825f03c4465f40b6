"""How events come from the engine's thread to the event loops, and what becomes of bugs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient

from segue.api import Model
from segue.serve import asked
from segue.serve.app import create_app
from segue.serve.service import Post


class Loop:
    """Counts how often it is woken."""

    def __init__(self, closed: bool = False) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.closed = closed

    def call_soon_threadsafe(self, *call: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.calls.append(call)


def test_a_loop_is_woken_once_for_all_that_it_is_sent() -> None:
    post, here, there, gone = Post(), Loop(), Loop(), Loop(closed=True)
    queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(3)]
    for number in range(4):
        post.put(here, queues[number % 2], number)  # type: ignore[arg-type]
    post.put(gone, queues[2], "lost")  # type: ignore[arg-type]
    post.put(there, queues[2], "x")  # type: ignore[arg-type]
    post.send()
    post.send()
    assert (len(here.calls), len(there.calls)) == (1, 1)
    for function, *arguments in (*here.calls, *there.calls):
        function(*arguments)
    assert [[queue.get_nowait() for _ in range(queue.qsize())] for queue in queues] == [[0, 2], [1, 3], ["x"]]


def test_a_bug_in_reading_a_request_is_answered_and_goes_no_further(lm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the server of sockets closes the connection, and with it whoever asked next on it."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(asked, "completion", broken)
    with TestClient(create_app(lm, name="mini"), raise_server_exceptions=True) as client:
        answer = client.post("/v1/completions", json={"model": "mini", "prompt": "a"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "its log says why" in answer.json()["error"]["message"]
