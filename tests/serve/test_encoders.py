"""Embeddings and reranking over HTTP: against the library, brute force, and OpenAI's client."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from segue.models.crossencoder import CrossEncoder, cross_encoder
from segue.models.embedding import Encoder, encoder
from segue.models.ranking import rank
from segue.serve.choosing import Choosing
from segue.serve.limits import Limits
from tests.models.encoders import save_cross_encoder, save_encoder

from .conftest import Start, as_httpx

TEXTS = ["the old house", "a bird", "The sea is far away and the night is red"]
QUERY = "the red sea"
MINI = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    folder = tmp_path_factory.mktemp("rerank") / "tiny-rerank"
    save_cross_encoder(folder)
    return cross_encoder(str(folder))


@pytest.fixture
def client(start: Start, reranker: CrossEncoder) -> TestClient:
    return start(embedder=encoder(), reranker=reranker)


def fault(response: Any, status: int, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    message: str = response.json()["error"]["message"]
    return message


def embed(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": MINI, "input": TEXTS} | fields)


def rerank(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS} | fields)


def vectors(response: Any) -> np.ndarray[Any, Any]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data])


def test_every_form_of_input_gives_the_librarys_vectors(client: TestClient) -> None:
    own = np.stack([row.numpy() for row in encoder()(TEXTS)])
    ids = [encoder().frame.encode(text) for text in TEXTS]
    for given in (TEXTS, ids):
        found = embed(client, input=given)
        assert np.array_equal(vectors(found).astype(np.float32), own)
    usage = found.json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == sum(len(row) + 2 for row in ids)
    for one in (TEXTS[1], ids[1]):
        assert np.array_equal(vectors(embed(client, input=one)).astype(np.float32), own[1:2])
    packed = embed(client, encoding_format="base64").json()["data"][2]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), own[2])
    assert vectors(embed(client, dimensions=384)).shape == (3, 384)


def test_openais_client(client: TestClient) -> None:
    own = encoder()(TEXTS)[0].numpy()
    with openai.OpenAI(base_url="http://testserver/v1", api_key="-", http_client=as_httpx(client)) as ours:
        packed = ours.embeddings.create(model=MINI, input=TEXTS)  # it asks for base64 by itself
        plain = ours.embeddings.create(model=MINI, input=TEXTS, encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="was not trained to be cut"):
            ours.embeddings.create(model=MINI, input=TEXTS, dimensions=64)
    for found in (packed, plain):
        assert np.allclose(found.data[0].embedding, own, atol=1e-7)


def test_a_cross_encoder_reranks(client: TestClient, reranker: CrossEncoder) -> None:
    expected = rank(reranker, QUERY, TEXTS)
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    for body in ({}, {"model": "tiny-rerank"}):
        answer = rerank(client, documents=documents, **body).json()
        assert answer["model"] == "tiny-rerank"
        assert answer["scored_by"] == "cross-encoder"
        assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == expected
        assert all(one["document"] == {"text": TEXTS[one["index"]]} for one in answer["results"])
    best = rerank(client, top_n=1, return_documents=False).json()
    assert best["results"] == [{"index": expected[0][0], "relevance_score": expected[0][1]}]
    pairs = [reranker.tokenizer(QUERY, text)["input_ids"] for text in TEXTS]
    assert best["usage"]["total_tokens"] == sum(map(len, pairs))


def test_an_encoder_reranks_by_cosines_where_it_is_named_or_alone(client: TestClient, start: Start) -> None:
    rows = np.stack([row.numpy() for row in encoder()([QUERY, *TEXTS])])
    cosines = rows[1:] @ rows[0]
    for server, body in ((client, {"model": MINI}), (start(embedder=encoder()), {})):
        answer = rerank(server, **body).json()
        assert answer["scored_by"] == "cosine"
        assert [one["index"] for one in answer["results"]] == np.argsort(-cosines).tolist()
        assert [one["relevance_score"] for one in answer["results"]] == pytest.approx(sorted(cosines)[::-1], abs=1e-6)


def test_models_are_chosen_by_name(client: TestClient, start: Start, lm: Any) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["mini", MINI, "tiny-rerank"]
    assert [client.get(f"/v1/models/{model['id']}").json() for model in listed] == listed
    assert "'mini' writes text; ask all-MiniLM" in fault(embed(client, model="mini"), 404, "model_not_found")
    fault(rerank(client, model="other"), 404, "model_not_found")
    fault(client.post("/v1/completions", json={"model": MINI, "prompt": "a"}), 404, "model_not_found")
    bare = start()
    assert "--embedder" in fault(embed(bare), 404, "no_embedder")
    assert "--reranker FOLDER" in fault(rerank(bare), 404, "no_reranker")
    with pytest.raises(ValueError, match="two models are called mini"):
        start(embedder=named(encoder(), "mini"))


def named(model: Encoder, name: str) -> Encoder:
    other = Encoder.__new__(Encoder)
    other.__dict__ |= model.__dict__ | {"name": name}
    return other


BAD = [
    {"input": []}, {"input": ""}, {"input": ["a", ""]}, {"input": [[]]}, {"input": [10**9]}, {"input": 7},
    {"input": ["half \ud800"]}, {"input": "sea " * 300}, {"encoding_format": "hex"}, {"dimensions": 0}, {"x": 1},
    {"deadline": -1}, {"input": ["a"] * 9}, {"input": "a" * 100_001, "truncate": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: str(fields)[:40])
def test_bad_requests_are_told_so(start: Start, fields: dict[str, Any]) -> None:
    client = start(embedder=encoder(), choosing=Choosing(limits=Limits(max_inputs=8)))
    import json

    body = json.dumps({"model": MINI, "input": TEXTS} | fields)
    response = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    own = {"query": QUERY, "documents": fields.get("input", TEXTS)} | {k: v for k, v in fields.items() if k != "input"}
    if "encoding_format" not in fields and "dimensions" not in fields:
        ranked = client.post("/v1/rerank", content=json.dumps(own), headers={"content-type": "application/json"})
        assert ranked.status_code == 400, ranked.text


def test_what_is_too_long_is_cut_where_a_request_says_so(client: TestClient) -> None:
    long = "sea " * 300
    assert vectors(embed(client, input=long, truncate=True)).shape == (1, 384)
    assert rerank(client, documents=[long], truncate=True).status_code == 200
    assert "truncate" in fault(rerank(client, documents=[long]), 400)


class Slow(Encoder):
    """Waits for a sign at every text, and says which texts were read."""

    def hold(self) -> Slow:
        self.go, self.seen, self.begun = threading.Semaphore(0), [], threading.Event()
        return self

    def vector(self, ids: Any, width: int | None = None) -> Any:
        self.begun.set()
        assert self.go.acquire(timeout=30)
        self.seen.append(len(ids))
        return super().vector(ids, width)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    made = Slow(save_encoder(tmp_path / "slow")).hold()
    yield made
    made.go.release(10_000)


def post(client: TestClient, answers: list[Any], **fields: Any) -> threading.Thread:
    asked = threading.Thread(target=lambda: answers.append(embed(client, model="slow", **fields)))
    asked.start()
    return asked


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def queued(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith("segue_encoder_queue_length ")))


def test_requests_take_turns_and_a_full_queue_is_told(start: Start, slow: Slow) -> None:
    client = start(embedder=slow, choosing=Choosing(limits=Limits(max_queue=2)))
    answers: list[Any] = []
    large = post(client, answers, input=["sea"] * 6)
    assert slow.begun.wait(30)
    small = post(client, answers, input="the old house")
    until(lambda: queued(client) == 2)
    full = embed(client, model="slow", input="a")
    fault(full, 429, "queue_full")
    assert full.headers["retry-after"] == "1"
    # The one who writes is not held up meanwhile.
    assert client.post("/v1/completions", json={"model": "mini", "prompt": "a", "max_tokens": 2}).status_code == 200
    slow.go.release(10)
    large.join(30)
    small.join(30)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert slow.seen.index(5) < 5  # the small one did not wait for the large one's last text
    text = client.get("/metrics").text
    assert 'segue_encoded_texts_total{kind="embeddings"} 7.0' in text
    assert 'segue_encoder_seconds_count{kind="embeddings"} 2.0' in text


def test_a_deadline_ends_a_request_between_its_texts(start: Start, slow: Slow) -> None:
    client = start(embedder=slow)
    answers: list[Any] = []
    asked = post(client, answers, input=["sea"] * 5, deadline=0.2)
    assert slow.begun.wait(30)
    time.sleep(0.3)
    slow.go.release(1)
    asked.join(30)
    fault(answers[0], 504, "deadline_exceeded")
    assert slow.seen == [3]
    assert queued(client) == 0


def test_an_encoder_that_fails_fails_one_request(start: Start, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start(embedder=slow)
    slow.go.release(10)
    with monkeypatch.context() as patch:
        patch.setattr(slow, "network", lambda **_: 1 / 0)
        assert "its log says why" in fault(embed(client, model="slow", input="a"), 500)
    assert embed(client, model="slow", input="a").status_code == 200
