"""A request's way through the server: from a checked body to its response, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from segue.api import Model
from segue.data import CapabilityError
from segue.models.vocabulary import token_bytes
from segue.serve import asked, bodies
from segue.serve.answers import Answer
from segue.serve.choosing import Choosing
from segue.serve.faults import NO_MODEL, Fault, failed, full, gone, late
from segue.serve.turns import until_gone
from segue.serve.worker import Ended, Event, Ticket, Worker


@dataclass
class Service:
    """One model behind an API."""

    model: Model
    name: str  # of the model, for clients
    worker: Worker
    choosing: Choosing
    _compiler: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "segue-grammars"))
    _compiling: int = 0  # grammars that are there or wait
    post: Post = field(init=False)

    def __post_init__(self) -> None:
        self.post = Post()
        self.worker.told = self.post.send

    def check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"there is no model {name[:60]!r} on this server that writes; {self.name} does"
            raise Fault(404, message, param="model", code=NO_MODEL)

    async def answer(self, http: HttpRequest, body: bodies.CompletionBody | bodies.ChatBody) -> Response:
        """Queue what a body asks for and answer it."""
        arrived = time.monotonic()
        self.check_name(body.model)
        try:
            plan = await self._plan(body)
        except Exception as error:  # an exception that got out would cost the client its connection, too
            raise failed(error) from None
        usage = body.stream_options is not None and body.stream_options.include_usage
        chat = isinstance(body, bodies.ChatBody)
        written = await asyncio.to_thread(lambda: self.written) if chat and plan.show_logprobs else {}
        reply = Answer(self.model.lm, self.name, plan, chat, usage, written)
        flow = Flow(self.worker, self.post, http, plan, body, arrived, self.choosing.limits.seconds(body.deadline))
        if not body.stream:
            async with flow:
                ended = [event async for event in flow.events() if isinstance(event, Ended)]
            return JSONResponse(reply.whole(sorted(ended, key=lambda one: one.choice)))
        await flow.__aenter__()
        try:
            first = await anext(flow.events())  # what is wrong by now still has a status of its own
        except BaseException:
            await flow.__aexit__()
            raise
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(flow, reply, first), media_type="text/event-stream", headers=headers)

    async def _plan(self, body: bodies.CompletionBody | bodies.ChatBody) -> asked.Asked:
        """What is to be queued. Grammars are compiled one after the other in a thread of their own: hostile ones take
        what they may of one core, and hold up neither the engine nor requests without one."""

        def read() -> asked.Asked:
            if isinstance(body, bodies.ChatBody):
                return asked.chat(body, self.model, self.choosing)
            return asked.completion(body, self.model, self.choosing)

        if not asked.constrained(body):
            return await asyncio.to_thread(read)
        limits = self.choosing.limits
        if self._compiling >= limits.max_queue:
            raise full(self._compiling, "grammars")
        seconds = limits.seconds(body.deadline)
        self._compiling += 1
        try:
            waiting = asyncio.get_running_loop().run_in_executor(self._compiler, read)
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            raise late(seconds) from None
        finally:
            self._compiling -= 1

    @cached_property
    def written(self) -> Mapping[int, bytes]:
        """The bytes of every token that is text; nothing where a tokenizer's tokens have none of their own."""
        try:
            found, specials = token_bytes(self.model.lm.tokenizer, self.model.lm.name)
        except CapabilityError:
            return {}
        return {token: data for token, data in found.items() if token not in specials}

    def close(self) -> None:
        """Drop what waits to be compiled."""
        self._compiler.shutdown(wait=False, cancel_futures=True)


Queue = asyncio.Queue[Event | None]


class Post:
    """Events on their way from the engine's thread to the event loops that wait for them. Those of one step go
    together: waking a loop costs more than an event does, and takes the interpreter from the engine each time."""

    def __init__(self) -> None:
        self._events: list[tuple[asyncio.AbstractEventLoop, Queue, Event]] = []

    def put(self, loop: asyncio.AbstractEventLoop, queue: Queue, event: Event) -> None:
        self._events.append((loop, queue, event))

    def send(self) -> None:
        """Hand out what was put since the last time."""
        events, self._events = self._events, []
        for loop in dict.fromkeys(loop for loop, *_ in events):
            mine = [(queue, event) for own, queue, event in events if own is loop]
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(_hand_out, mine)


def _hand_out(events: list[tuple[Queue, Event]]) -> None:
    for queue, event in events:
        queue.put_nowait(event)


class Flow:
    """The events of one ticket. Left early, or when the client goes, the ticket is cancelled."""

    def __init__(
        self,
        worker: Worker,
        post: Post,
        http: HttpRequest,
        plan: asked.Asked,
        body: bodies.Generation,
        arrived: float,
        seconds: float,
    ) -> None:
        self._queue: Queue = asyncio.Queue()
        deliver = partial(post.put, asyncio.get_running_loop(), self._queue)
        self._worker = worker
        self._http = http
        self._left = len(plan.requests) * plan.best_of
        self._ticket = Ticket(
            plan.requests,
            plan.best_of,
            deliver,
            stream=bool(body.stream),
            priority=body.priority,
            seconds=seconds,
            arrived=arrived,  # compiling a grammar counts, too
        )

    async def __aenter__(self) -> Flow:
        self._worker.submit(self._ticket)
        self._watch = asyncio.create_task(self._until_gone())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        if self._left:
            self._worker.cancel(self._ticket)

    async def events(self) -> AsyncIterator[Event]:
        """Until every choice has ended. Raises the Fault that the ticket came to."""
        while self._left:
            event = await self._queue.get()
            if event is None:
                raise gone()
            if isinstance(event, Fault):
                self._left = 0
                raise event
            if isinstance(event, Ended):
                self._left -= 1
                facts = self._http.scope.setdefault("segue", {"answered_by": event.completion.stats.method})
                facts["tokens"] = facts.get("tokens", 0) + event.completion.stats.tokens
            yield event

    async def _until_gone(self) -> None:
        await until_gone(self._http)
        self._worker.cancel(self._ticket)
        self._queue.put_nowait(None)


async def _stream(flow: Flow, reply: Answer, first: Event) -> AsyncIterator[str]:
    """Server-sent events."""
    ended = {}
    try:
        for chunk in reply.opening():
            yield _event(chunk)
        event: Event | None = first
        events = flow.events()
        while event is not None:
            if isinstance(event, Ended):
                ended[event.choice] = event
                chunks = reply.piece(event.rest, event.completion.finish_reason)
            else:
                assert not isinstance(event, Fault)
                chunks = reply.piece(event)
            for chunk in chunks:
                yield _event(chunk)
            event = await anext(events, None)
        for chunk in reply.closing([ended[i] for i in sorted(ended)]):
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except Fault as fault:  # the status has gone out already
        yield _event(fault.body())
    finally:
        await flow.__aexit__()


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
