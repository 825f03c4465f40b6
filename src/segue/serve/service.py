"""A request's way through the server: from a checked body to its response, whole or streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from segue.api import Model
from segue.serve import asked, bodies
from segue.serve.answers import Answer
from segue.serve.choosing import Choosing
from segue.serve.faults import Fault
from segue.serve.worker import Ended, Event, Ticket, Worker


@dataclass
class Service:
    """One model behind an API."""

    model: Model
    name: str  # of the model, for clients
    worker: Worker
    choosing: Choosing

    def check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"there is no model {name[:60]!r} on this server; it serves {self.name}"
            raise Fault(404, message, param="model", code="model_not_found")

    async def answer(self, http: HttpRequest, body: bodies.CompletionBody | bodies.ChatBody) -> Response:
        """Queue what a body asks for and answer it."""
        self.check_name(body.model)
        plan: asked.Asked
        if isinstance(body, bodies.ChatBody):
            plan = await asyncio.to_thread(asked.chat, body, self.model, self.choosing)
        else:
            plan = await asyncio.to_thread(asked.completion, body, self.model, self.choosing)
        usage = body.stream_options is not None and body.stream_options.include_usage
        reply = Answer(self.model.lm, self.name, plan, isinstance(body, bodies.ChatBody), usage)
        flow = Flow(self.worker, http, plan, body, self.choosing.limits.timeout)
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


class Flow:
    """The events of one ticket. Left early, or when the client goes, the ticket is cancelled."""

    def __init__(
        self,
        worker: Worker,
        http: HttpRequest,
        plan: asked.Asked,
        body: bodies.Generation,
        timeout: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

        def deliver(event: Event | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(self._queue.put_nowait, event)

        seconds = timeout if body.deadline is None else min(timeout, body.deadline)
        self._deliver = deliver
        self._worker = worker
        self._http = http
        self._left = len(plan.requests) * plan.best_of
        self._ticket = Ticket(
            plan.requests, plan.best_of, deliver, stream=bool(body.stream), priority=body.priority, seconds=seconds
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
                raise Fault(499, "the client has gone")
            if isinstance(event, Fault):
                self._left = 0
                raise event
            if isinstance(event, Ended):
                self._left -= 1
                facts = self._http.scope.setdefault("segue", {"answered_by": event.completion.stats.method})
                facts["tokens"] = facts.get("tokens", 0) + event.completion.stats.tokens
            yield event

    async def _until_gone(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._worker.cancel(self._ticket)
        self._deliver(None)


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
