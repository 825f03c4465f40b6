"""The endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

import segue
from segue.api import Model
from segue.models.conversation import Form
from segue.models.crossencoder import CrossEncoder
from segue.models.embedding import Encoder
from segue.models.engine import Engine
from segue.serve import asked, bodies, encoders
from segue.serve.choosing import Choosing
from segue.serve.encoders import Encoders
from segue.serve.faults import NO_MODEL, Fault, failed, refused
from segue.serve.gate import Gate, Keys
from segue.serve.metrics import Metrics
from segue.serve.service import Service
from segue.serve.turns import Turns
from segue.serve.unread import unread
from segue.serve.worker import Worker

PATHS = (
    "/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/health", "/ready",
    "/metrics", "/version", "/openapi.json", *encoders.PATHS,
)  # fmt: skip


def create_app(
    model: Model,
    *,
    name: str | None = None,
    choosing: Choosing | None = None,
    keys: Iterable[str] = (),
    engine: Callable[[], Engine] = Engine,
    json_log: bool = False,
    embedder: Encoder | None = None,
    reranker: CrossEncoder | None = None,
    cors: Sequence[str] = (),
    replica: str | None = None,
) -> FastAPI:
    """The server of a model as an ASGI application. `name` is what clients call the model; without `keys` everybody may
    ask. `embedder` and `reranker` are what /v1/embeddings and /v1/rerank answer with. `cors`: origins
    (https://example.org, or *) whose pages may ask from a browser. Where it is one of several behind an address,
    `replica` labels what it measures."""
    choosing = choosing or Choosing()
    limits = choosing.limits
    metrics = Metrics(replica)
    worker = Worker(model, metrics, max_queue=limits.max_queue, engine=engine)
    service = Service(model, name or model.lm.name, worker, choosing)
    turns = Turns(metrics, max_queue=limits.max_queue)
    beside = Encoders(turns, limits, service.name, embedder, reranker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        turns.start()
        try:
            yield
        finally:
            stops = (asyncio.to_thread(one.stop, limits.drain) for one in (turns, worker))
            await asyncio.gather(*stops)
            service.close()

    app = FastAPI(title="segue", version=segue.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.add_middleware(
        Gate, keys=Keys(keys), max_body=limits.max_body_bytes, metrics=metrics, paths=PATHS, json_log=json_log
    )
    if cors:  # outermost: a browser asks without the key whether it may ask
        headers = ["Authorization", "Content-Type"]
        app.add_middleware(CORSMiddleware, allow_origins=cors, allow_methods=["GET", "POST"], allow_headers=headers)
    _add_errors(app)
    _add_answers(app, service)
    _add_models(app, service, beside)
    _add_encoders(app, beside)
    _add_tokens(app, service)
    _add_state(app, worker, metrics)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(http: HttpRequest, body: bodies.CompletionBody) -> Response:
        return await service.answer(http, body)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: HttpRequest, body: bodies.ChatBody) -> Response:
        return await service.answer(http, body)


def _add_models(app: FastAPI, service: Service, beside: Encoders) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        lm = service.model.lm
        facts = {"id": service.name, "object": "model", "created": 0, "owned_by": "segue"}
        return {"object": "list", "data": [{**facts, "max_model_len": lm.context_length}, *beside.listed()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        listed: list[dict[str, Any]] = (await models())["data"]
        found = next((model for model in listed if model["id"] == name), None)
        if found is None:
            there = ", ".join(model["id"] for model in listed)
            raise Fault(404, f"there is no model {name[:60]!r} on this server; it serves {there}", code=NO_MODEL)
        return found


def _add_encoders(app: FastAPI, beside: Encoders) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(http: HttpRequest, body: bodies.EmbeddingsBody) -> dict[str, Any]:
        return await beside.embed(http, body)

    @app.post("/rerank")
    @app.post("/v1/rerank")
    async def rerank(http: HttpRequest, body: bodies.RerankBody) -> dict[str, Any]:
        return await beside.rerank(http, body)


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
    @app.head("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    @app.head("/ready", include_in_schema=False)
    async def ready() -> dict[str, str]:
        if not worker.ready:
            raise Fault(503, "the server is starting or stopping", code="not_ready")
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": segue.__version__}

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
        return reply(unread(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(http: HttpRequest, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        path = http.url.path[:60]
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {path} on this server; it answers {', '.join(PATHS)}"
        elif error.status_code == 405:
            message = f"{http.method} is not for {path}: use {headers.get('Allow', 'another method')}"
        elif error.status_code == 400:  # FastAPI's own, without a reason
            message = (
                "the body is not JSON that can be read: not UTF-8, nested too deeply, or a number of too many digits"
            )
        fault = Fault(error.status_code, message)
        return JSONResponse(fault.body(), fault.status, fault.headers | headers)

    @app.exception_handler(Exception)
    async def broken(_: HttpRequest, error: Exception) -> Response:
        return reply(failed(error))
