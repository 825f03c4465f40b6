"""LangChain's classes for OpenAI against a server of ours."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from segue.api import Model
from segue.models.conversation import STOP
from segue.models.embedding import encoder

from .conftest import Start, as_httpx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports are not ours
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL = "http://testserver/v1"


class Weather(BaseModel):
    """What is asked for."""

    warm: bool
    degrees: int = Field(ge=-50, le=50)


@pytest.fixture
def client(start: Start) -> TestClient:
    return start(embedder=encoder())


@pytest.fixture
def chat(client: TestClient) -> Any:
    return ChatOpenAI(
        model="mini", base_url=URL, api_key="-", temperature=0, max_completion_tokens=24, http_client=as_httpx(client)
    )


def test_a_chat_whole_and_streamed(chat: Any, lm: Model) -> None:
    offline = lm.generate("User: Hello\nAssistant:", max_tokens=24, stop=[STOP])
    whole = chat.invoke("Hello")
    assert whole.content == offline.text.lstrip()
    assert whole.response_metadata["model_name"] == "mini"
    assert whole.usage_metadata["output_tokens"] == len(offline.tokens)
    pieces = list(chat.stream("Hello"))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert len([piece for piece in pieces if piece.content]) > 1  # drafted tokens come together


def test_a_structured_answer(chat: Any) -> None:
    answer = chat.with_structured_output(Weather, method="json_schema").invoke("How is the weather?")
    assert isinstance(answer, Weather)


def test_embeddings(client: TestClient) -> None:
    ours = OpenAIEmbeddings(
        model="all-MiniLM-L6-v2", base_url=URL, api_key="-", check_embedding_ctx_length=False,
        http_client=as_httpx(client),
    )  # fmt: skip
    texts = ["the old house", "a bird"]
    expected = np.stack([row.numpy() for row in encoder()(texts)])
    assert np.allclose(ours.embed_documents(texts), expected, atol=1e-6)
    assert np.allclose(ours.embed_query(texts[1]), expected[1], atol=1e-6)
