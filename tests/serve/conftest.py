from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

import segue
from segue.api import Model
from segue.models.prefixes import Prefixes
from segue.serve.app import create_app


@pytest.fixture(scope="session")
def lm() -> Model:
    """The smallest embedded model, in the precision in which equal tokens are promised."""
    return segue.model("mini-draft", dtype="float32")


Start = Callable[..., TestClient]


@pytest.fixture
def start(lm: Model) -> Iterator[Start]:
    """Servers of the model, each as its test wants it, ended with the test."""
    with ExitStack() as stack:

        def make(prefixes: Prefixes | None = None, **options: Any) -> TestClient:
            app = create_app(Model(lm.lm, prefixes=prefixes), name="mini", **options)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture(scope="module")
def client(lm: Model) -> Iterator[TestClient]:
    with TestClient(create_app(lm, name="mini"), raise_server_exceptions=False) as made:
        yield made


def as_httpx(client: TestClient) -> httpx.Client:
    """The test client as OpenAI's client takes one: its requests go into the application, not over a network."""

    def handle(request: httpx.Request) -> httpx.Response:
        content = request.read()
        found = client.request(
            request.method, request.url.raw_path.decode(), content=content, headers=dict(request.headers)
        )
        return httpx.Response(found.status_code, content=found.content, headers=dict(found.headers))

    return httpx.Client(transport=httpx.MockTransport(handle))
