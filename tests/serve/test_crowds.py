"""What users and machines do to a server: crowds, leaving, enormous and corrupt bodies, signals. Nothing hangs, nothing
is lost, memory comes back, and errors are clear."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NOT_SET
from starlette.testclient import TestClient

from segue.api import Model
from segue.serve.app import create_app
from segue.serve.choosing import Choosing
from segue.serve.limits import Limits

from .test_process import KEY, PROMPT, Launch, launch  # noqa: F401, a fixture

HEADERS = {"Authorization": f"Bearer {KEY}"}
BODY: dict[str, Any] = {"model": "mini-draft", "prompt": PROMPT, "temperature": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def url(launch: Launch) -> str:  # noqa: F811
    return launch("--max-queue", "300")[1]


@asynccontextmanager
async def visit(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, limits=limits, timeout=60, trust_env=False) as http:
        yield http


async def gauge(http: httpx.AsyncClient, name: str) -> float:
    text = (await http.get("/metrics")).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"segue_{name} ")))


async def at_rest(http: httpx.AsyncClient) -> None:
    """The server does and holds nothing, soon."""
    end = time.monotonic() + 10
    while any([await gauge(http, name) for name in ("kv_bytes", "running", "queue_length")]):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def all_of(http: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    return await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))


def test_two_hundred_connections_at_once(url: str, lm: Model) -> None:
    prompts = [f"{PROMPT} number {i % 10}" for i in range(200)]
    expected = [lm.generate(prompt, "plain", max_tokens=3).text for prompt in prompts[:10]]

    async def crowd() -> None:
        async with visit(url) as http:
            responses = await all_of(http, [{**BODY, "prompt": prompt} for prompt in prompts])
            assert [response.status_code for response in responses] == [200] * 200
            assert [r.json()["choices"][0]["text"] for r in responses] == expected * 20
            await at_rest(http)

    asyncio.run(crowd())


def test_those_that_leave_take_nothing_along_and_keep_nothing(url: str, lm: Model) -> None:
    source = random.Random(0)
    stays = lm.generate(PROMPT, "plain", max_tokens=30, ignore_eos=True).text

    async def one(http: httpx.AsyncClient, number: int) -> str | None:
        leaves = number % 3 > 0
        body = {**BODY, "max_tokens": 1500 if leaves else 30, "ignore_eos": True, "n": 1 + number % 2 * leaves}
        body["stream"] = leaves and number % 2 == 0
        try:
            async with asyncio.timeout(source.uniform(0.05, 1.0) if leaves else None):
                async with http.stream("POST", "/v1/completions", json=body) as response:
                    said = await response.aread()
        except TimeoutError:
            return None
        assert response.status_code == 200
        text: str = json.loads(said)["choices"][0]["text"]
        return text

    async def crowd() -> None:
        async with visit(url) as http:
            answers = await asyncio.gather(*(one(http, number) for number in range(24)))
            assert answers == [None if number % 3 else stays for number in range(24)]
            await at_rest(http)

    asyncio.run(crowd())


def test_sigterm_under_load_answers_what_was_accepted(launch: Launch, lm: Model) -> None:  # noqa: F811
    server, url = launch("--max-running", "6", "--drain", "60")
    expected = lm.generate(PROMPT, "plain", max_tokens=40, ignore_eos=True).text
    body = {**BODY, "max_tokens": 40, "ignore_eos": True}

    async def crowd() -> None:
        async with visit(url) as http:
            asked = asyncio.create_task(all_of(http, [body] * 16))
            while await gauge(http, "running") + await gauge(http, "queue_length") < 16:
                await asyncio.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            responses = await asked
            assert [response.status_code for response in responses] == [200] * 16
            assert {response.json()["choices"][0]["text"] for response in responses} == {expected}
        async with visit(url) as http:
            with pytest.raises(httpx.TransportError):
                await http.post("/v1/completions", json=body)

    asyncio.run(crowd())
    _, log = server.communicate(timeout=20)
    assert server.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]
    assert sum(line["path"] == "/v1/completions" and line["status"] == 200 for line in lines) == 16


def test_a_prompt_of_a_megabyte_is_refused_by_its_length(lm: Model) -> None:
    """Within the bytes that a body may have, and beyond the tokens that a prompt may have."""
    words = "the house on the hill " * 50_000
    for limits in (Limits(), Limits(max_prompt_tokens=10**7)):  # refused by the server's limit, or by the model's
        app = create_app(lm, name="mini-draft", choosing=Choosing(limits=limits))
        with TestClient(app, raise_server_exceptions=False) as client:
            begun = time.monotonic()
            for body in ({"prompt": words}, {"prompt": list(range(100, 200)) * 2000}):
                response = client.post("/v1/completions", json={**BODY, **body})
                assert response.status_code == 400
                assert "tokens" in response.json()["error"]["message"]
            talk = {"model": "mini-draft", "messages": [{"role": "user", "content": words}]}
            assert client.post("/v1/chat/completions", json=talk).status_code == 400
            assert time.monotonic() - begun < 20
            assert client.post("/v1/completions", json=BODY).status_code == 200


@pytest.fixture(scope="module")
def open_client(lm: Model) -> Iterator[TestClient]:
    with TestClient(create_app(lm, name="mini-draft"), raise_server_exceptions=False) as made:
        yield made


WHOLE = json.dumps({**BODY, "max_tokens": 1, "stop": ["x"], "logit_bias": {"5": 1.5}, "stream": True}).encode()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["cut", "put", "swap"]), st.integers(0, len(WHOLE) - 1), st.binary(max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["application/json", "text/plain", "application/x-www-form-urlencoded", ""]),
)
def test_damaged_bodies_are_refused_and_never_the_servers_fault(
    open_client: TestClient, damage: list[tuple[str, int, bytes]], kind: str
) -> None:
    body = WHOLE
    for how, place, data in damage:
        rest = {"cut": b"", "put": body[place:], "swap": body[place + len(data) :]}[how]
        body = body[:place] + data + rest
    headers = {"content-type": kind} if kind else {}
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        response = open_client.post(path, content=body, headers=headers)
        assert response.status_code == 200 or 400 <= response.status_code < 500, (response.status_code, body)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert open_client.get("/ready").status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
def test_requests_made_from_the_servers_own_description(
    open_client: TestClient, path: str, mode: GenerationMode
) -> None:
    """What fits /openapi.json and what does not: refused where it has to be, and never the server's fault."""
    schema = schemathesis.openapi.from_dict(open_client.get("/openapi.json").json())
    seen: set[int] = set()

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(schema[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        try:
            body = json.dumps(case.body).encode()
        except TypeError:  # not JSON at all
            body = b"" if case.body is NOT_SET else str(case.body).encode(errors="surrogatepass")
        response = open_client.post(path, content=body, headers={"content-type": case.media_type or "text/plain"})
        seen.add(response.status_code)
        assert response.status_code == 200 or 400 <= response.status_code < 500, (response.status_code, body)
        if response.status_code != 200:
            assert response.json()["error"]["message"]

    ask()
    assert seen & {400, 404}
    assert open_client.get("/ready").status_code == 200
