"""Users of a server: each asks one question after the other, all of them from one event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from segue.bench.load.questions import Question

PATIENCE = 120.0  # seconds without a sign of life after which a request counts as hung
HUNG, BROKEN = "hung", "broken"


@dataclass
class Reply:
    """What a question came to, by the client's clock."""

    question: Question
    begun: float = 0.0
    ended: float = 0.0
    status: int | None = None
    text: str = ""
    tokens: int = 0
    arrivals: list[float] = field(default_factory=list)  # of the pieces of a stream that hold text
    left: bool = False  # the client went away, as it was told to
    trouble: str | None = None  # HUNG, BROKEN, or what the server said was wrong
    said: str = ""  # more of it

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def first(self) -> float | None:
        """Seconds to the first piece of a stream."""
        return self.arrivals[0] - self.begun if self.arrivals else None


async def ask(http: httpx.AsyncClient, model: str, question: Question) -> Reply:
    """Ask a question and wait for its end, or go away in time."""
    reply = Reply(question, time.perf_counter())
    body = question.body | {"model": model, "stream": question.stream}
    if question.stream:
        body["stream_options"] = {"include_usage": True}
    try:
        async with asyncio.timeout(question.leaves):
            async with http.stream("POST", "/v1/completions", json=body) as response:
                reply.status = response.status_code
                if question.stream and response.status_code == 200:
                    _read_stream(reply, [(at, part) async for at, part in _timed(response)])
                else:
                    _read_whole(reply, await response.aread())
    except TimeoutError:
        reply.left = True
    except httpx.TimeoutException:
        reply.trouble, reply.said = HUNG, f"nothing came for {PATIENCE:g} seconds"
    except (httpx.TransportError, ValueError, KeyError) as error:
        reply.trouble, reply.said = BROKEN, f"{type(error).__name__}: {error}"
    reply.ended = time.perf_counter()
    return reply


async def crowd(http: httpx.AsyncClient, model: str, users: Iterable[Iterator[Question]]) -> list[Reply]:
    """All users at once, each with the questions that it brings; the replies in the order of their ends."""
    replies: list[Reply] = []

    async def one(questions: Iterator[Question]) -> None:
        for question in questions:
            replies.append(await ask(http, model, question))

    await asyncio.gather(*(one(questions) for questions in users))
    return replies


def until(end: float, draw: Callable[[], Question]) -> Iterator[Question]:
    """Questions until a time of the clock."""
    while time.perf_counter() < end:
        yield draw()


async def _timed(response: httpx.Response) -> Any:
    """Events of a stream with the times at which they arrived; they are read later, to be in nobody's way."""
    rest = b""
    async for data in response.aiter_raw():
        at = time.perf_counter()
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            yield at, event


def _read_stream(reply: Reply, events: list[tuple[float, bytes]]) -> None:
    if not events or events[-1][1] != b"data: [DONE]":
        last = json.loads(events[-1][1].removeprefix(b"data: ")) if events else {}
        error = last.get("error", {"message": "the stream ended too soon", "code": BROKEN})
        reply.trouble, reply.said = error["code"] or BROKEN, error["message"]
        return
    for at, event in events[:-1]:
        chunk = json.loads(event.removeprefix(b"data: "))
        text = "".join(choice["text"] for choice in chunk["choices"])
        if text:
            reply.arrivals.append(at)
            reply.text += text
        if chunk.get("usage"):
            reply.tokens = chunk["usage"]["completion_tokens"]


def _read_whole(reply: Reply, data: bytes) -> None:
    said = json.loads(data)
    if reply.status != 200:
        reply.trouble, reply.said = said["error"]["code"] or said["error"]["type"], said["error"]["message"]
        return
    reply.text = said["choices"][0]["text"]
    reply.tokens = said["usage"]["completion_tokens"]
