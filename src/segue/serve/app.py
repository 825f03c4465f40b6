"""The endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

import segue
from segue.api import Model
from segue.models.conversation import Form
from segue.models.engine import Engine
from segue.serve import asked, bodies
from segue.serve.choosing import Choosing
from segue.serve.faults import Fault, failed, refused
from segue.serve.gate import Gate, Keys
from segue.serve.metrics import Metrics
from segue.serve.service import Service
from segue.serve.worker import Worker

PATHS = (
    "/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/health", "/ready",
    "/metrics", "/openapi.json",
)  # fmt: skip


def create_app(
    model: Model,
    *,
    name: str | None = None,
    choosing: Choosing | None = None,
    keys: Iterable[str] = (),
    engine: Callable[[], Engine] = Engine,
    json_log: bool = False,
) -> FastAPI:
    """The server of a model as an ASGI application. `name` is what clients call the model; without `keys` everybody may
    ask."""
    choosing = choosing or Choosing()
    limits = choosing.limits
    metrics = Metrics()
    worker = Worker(model, metrics, max_queue=limits.max_queue, engine=engine)
    service = Service(model, name or model.lm.name, worker, choosing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop, limits.drain)

    app = FastAPI(title="segue", version=segue.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.add_middleware(
        Gate, keys=Keys(keys), max_body=limits.max_body_bytes, metrics=metrics, paths=PATHS, json_log=json_log
    )
    _add_errors(app)
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, worker, metrics)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        lm = service.model.lm
        facts = {"id": service.name, "object": "model", "created": 0, "owned_by": "segue"}
        return {"object": "list", "data": [{**facts, "max_model_len": lm.context_length}]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_name(name)
        found: dict[str, Any] = (await models())["data"][0]
        return found

    @app.post("/v1/completions", response_model=None)
    async def completions(http: HttpRequest, body: bodies.CompletionBody) -> Response:
        return await service.answer(http, body)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: HttpRequest, body: bodies.ChatBody) -> Response:
        return await service.answer(http, body)


def _add_tokens(app: FastAPI, service: Service) -> None:
    lm = service.model.lm

    @app.post("/tokenize")
    async def tokenize(body: bodies.TokenizeBody) -> dict[str, Any]:
        service.check_name(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Fault(400, "give either prompt or messages", param="prompt")
        try:
            if body.messages is not None:
                ids = await asyncio.to_thread(asked.chat_ids, body.messages, Form(lm))
            else:
                ids = await asyncio.to_thread(lm.encode, body.prompt or "", special=body.add_special_tokens)
        except ValueError as error:
            raise refused(error, "prompt") from None
        return {"tokens": ids, "count": len(ids), "max_model_len": lm.context_length}

    @app.post("/detokenize")
    async def detokenize(body: bodies.DetokenizeBody) -> dict[str, Any]:
        service.check_name(body.model)
        try:
            lm.check_vocabulary(body.tokens)
        except ValueError as error:
            raise refused(error, "tokens") from None
        return {"prompt": await asyncio.to_thread(lm.decode, body.tokens)}


def _add_state(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if not worker.ready:
            raise Fault(503, "the server is starting or stopping", code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_model=None)
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_errors(app: FastAPI) -> None:
    def reply(fault: Fault) -> JSONResponse:
        return JSONResponse(fault.body(), fault.status, fault.headers)

    @app.exception_handler(Fault)
    async def faulty(_: HttpRequest, fault: Fault) -> Response:
        return reply(fault)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return reply(Fault(400, f"{where or 'body'}: {first['msg']}", param=where or None))

    @app.exception_handler(HTTPException)
    async def http_error(_: HttpRequest, error: HTTPException) -> Response:
        return reply(Fault(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def broken(_: HttpRequest, error: Exception) -> Response:
        return reply(failed(error))
