"""What stands before every endpoint: keys, the size of bodies, and a line in the log for each request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.serve.faults import Fault, log
from segue.serve.metrics import Metrics

OPEN = ("/health", "/ready")  # answered without a key: load balancers have none
BODY_SECONDS = 60  # in which a body must have arrived


class Keys:
    """API keys, kept as hashes and compared in constant time. Without any, everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, authorization: bytes) -> bool:
        """Whether an Authorization header brings one of them."""
        kind, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(given, own) for own in self._hashes]  # all of them, whichever fits
        return not self._hashes or (kind.lower() == b"bearer" and any(known))


class Gate:
    """An ASGI middleware. It reads the body, so that no endpoint sees one that is too large."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys, max_body: int, metrics: Metrics, paths: Iterable[str], json_log: bool
    ) -> None:
        self.app = app
        self.keys = keys
        self.max_body = max_body
        self.metrics = metrics
        self.paths = frozenset(paths)  # others are one in the metrics: anybody can make up paths
        self.json_log = json_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self.app(scope, _replay(body, receive), watched)
        except Fault as fault:
            await JSONResponse(fault.body(), fault.status, fault.headers)(scope, receive, watched)
        finally:
            self._book(scope, status, time.perf_counter() - begun)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None where the client has gone. Fault where the request may not pass."""
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN and not self.keys.admit(headers.get(b"authorization", b"")):
            raise Fault(401, "this server needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        self._weigh(int(length) if length.isdigit() else 0)
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    self._weigh(len(body))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Fault(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None
        return bytes(body)

    def _weigh(self, size: int) -> None:
        if size > self.max_body:
            raise Fault(413, f"the body is larger than {self.max_body} bytes", code="body_too_large")

    def _book(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, str(status or 499)).inc()  # 499: the client had gone
        if self.json_log:
            facts = {"method": scope["method"], "path": path, "status": status or 499, "seconds": round(seconds, 4)}
            log.info(json.dumps({"time": round(time.time(), 3), **facts, **scope.get("segue", {})}))


def _replay(body: bytes, receive: Receive) -> Receive:
    given: list[Any] = []

    async def again() -> Message:
        if given:
            return await receive()
        given.append(True)
        return {"type": "http.request", "body": body, "more_body": False}

    return again
