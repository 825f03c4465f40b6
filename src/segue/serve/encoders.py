"""Embeddings and reranking: what a body asks of an encoder, and the answer in the form that clients read."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from torch import Tensor

from segue.models.crossencoder import CrossEncoder
from segue.models.embedding import Encoder
from segue.models.ranking import ranking
from segue.serve import bodies
from segue.serve.faults import NO_MODEL, Fault, refused
from segue.serve.limits import Limits
from segue.serve.turns import Turns, Work

PATHS = ("/v1/embeddings", "/v1/rerank", "/rerank")


@dataclass
class Encoders:
    """The models beside the one that writes."""

    turns: Turns
    limits: Limits
    writer: str  # what clients call the model that writes
    embedder: Encoder | None = None
    reranker: CrossEncoder | None = None

    def __post_init__(self) -> None:
        names = [self.writer, *(model["id"] for model in self.listed())]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"two models are called {twice}: clients choose by name. Rename a folder, or use --served-name"
            )

    def listed(self) -> list[dict[str, Any]]:
        """As /v1/models lists them."""
        facts = {"object": "model", "created": 0, "owned_by": "segue"}
        models = [(model, model.longest) for model in (self.embedder, self.reranker) if model is not None]
        return [{"id": model.name, **facts, "max_model_len": longest} for model, longest in models]

    async def embed(self, http: HttpRequest, body: bodies.EmbeddingsBody) -> dict[str, Any]:
        """Vectors of texts or of token ids."""
        encoder = self.embedder
        if encoder is None:
            raise Fault(404, "this server has no encoder: start it with --embedder", param="model", code="no_embedder")
        self._check_name(body.model, encoder)
        texts = _inputs(body.input)
        self._grant("input", texts)
        try:
            encoder.check_width(body.dimensions)
        except ValueError as error:
            raise refused(error, "dimensions") from None
        vectors, tokens = await self._take(http, "embeddings", _embed(encoder, texts, body), body.deadline)
        form = _base64 if body.encoding_format == "base64" else Tensor.tolist
        data = [{"object": "embedding", "index": i, "embedding": form(row)} for i, row in enumerate(vectors)]
        return {"object": "list", "model": encoder.name, "data": data, "usage": _usage(tokens)}

    async def rerank(self, http: HttpRequest, body: bodies.RerankBody) -> dict[str, Any]:
        """Documents by how well they fit a query, the best first; equal ones as they came."""
        model = self._judge(body.model)
        documents = [document if isinstance(document, str) else document.text for document in body.documents]
        self._grant("documents", documents)
        self._grant("query", [body.query])
        work = ranking(model, body.query, documents, body.truncate)
        ranked, tokens = await self._take(http, "rerank", work, body.deadline)
        results = []
        for i, score in ranked[: body.top_n]:
            shown = {"document": {"text": documents[i]}} if body.return_documents else {}
            results.append({"index": i, "relevance_score": score, **shown})
        return {
            "id": "rerank-" + uuid.uuid4().hex,
            "object": "list",
            "model": model.name,
            "scored_by": model.scored_by,
            "results": results,
            "usage": _usage(tokens),
        }

    def _judge(self, name: str | None) -> CrossEncoder | Encoder:
        """The model that a request names; without a name the reranker before the encoder."""
        there = [model for model in (self.reranker, self.embedder) if model is not None]
        if not there:
            raise Fault(
                404,
                "this server has no reranker: start it with --reranker FOLDER, or with --embedder for cosines",
                param="model",
                code="no_reranker",
            )
        return next((model for model in there if model.name == name), None) or self._check_name(name, there[0])

    def _check_name(self, name: str | None, model: Any) -> Any:
        if name is None or name == model.name:
            return model
        what = "writes text" if name == self.writer else "is not on this server"
        named = ", ".join(one["id"] for one in self.listed())
        raise Fault(404, f"{name[:60]!r} {what}; ask {named}", param="model", code=NO_MODEL)

    def _grant(self, param: str, texts: Sequence[str | list[int]]) -> None:
        """Fault for too many texts, and for one that is empty (as OpenAI's API has it) or far too long."""
        most = self.limits.max_inputs
        if len(texts) > most:
            raise Fault(400, f"{len(texts)} texts are more than this server grants: at most {most}", param=param)
        longest = self.limits.max_text_chars
        for text in texts:
            if not text:
                raise Fault(400, f"{param} has an empty text", param=param)
            if len(text) > longest:
                raise Fault(400, f"a text of {len(text)} characters or tokens: at most {longest}", param=param)

    async def _take(self, http: HttpRequest, kind: str, work: Work[Any], deadline: float | None) -> Any:
        metrics = self.turns.metrics
        begun = time.monotonic()
        values, tokens = await self.turns.take(http, work, self.limits.seconds(deadline))
        metrics.encoder_seconds.labels(kind).observe(time.monotonic() - begun)
        metrics.encoded_texts.labels(kind).inc(len(values))
        metrics.encoded_tokens.labels(kind).inc(tokens)
        return values, tokens


def _inputs(given: Any) -> list[str | list[int]]:
    """One text for each vector."""
    many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    texts: list[str | list[int]] = given if many else [given]
    return texts


def _embed(encoder: Encoder, texts: list[str | list[int]], body: bodies.EmbeddingsBody) -> Work[Any]:
    """Vectors, and how many tokens were read. All texts are read as tokens first: what is wrong is told before work."""
    rows = []
    for text in texts:
        own = encoder.frame.encode(text) if isinstance(text, str) else text
        rows.append(encoder.frame.around(own, body.truncate))
        yield
    vectors = []
    for row in rows:
        vectors.append(encoder.vector(row, body.dimensions))
        yield
    return vectors, sum(map(len, rows))


def _base64(row: Tensor) -> str:
    """Float32, little-endian, as OpenAI's clients read it."""
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
