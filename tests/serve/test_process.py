"""The server as users meet it: a process, OpenAI's client, curl, and SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from segue.api import Model

KEY = "a-key-for-tests"
PROMPT = "The house on the hill was old, and the house"
Launch = Callable[..., tuple[subprocess.Popen[bytes], str]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts servers, and ends them with the module."""
    servers: list[subprocess.Popen[bytes]] = []
    keys = tmp_path_factory.mktemp("serve") / "keys"
    keys.write_text(f"# of the tests\n{KEY}\n")

    def start(*options: str) -> tuple[subprocess.Popen[bytes], str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "segue", "serve", "-m", "mini-draft", "--dtype", "float32"]
        command += ["--port", str(port), "--api-key-file", str(keys), "--json-log", *options]
        servers.append(subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                if httpx.get(url + "/ready", trust_env=False).status_code == 200:
                    return servers[-1], url
            except httpx.TransportError:
                assert servers[-1].poll() is None
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    yield start
    for server in servers:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def url(launch: Launch) -> str:
    return launch("--max-queue", "60")[1]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=url + "/v1", api_key=KEY, max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as made:
        yield made


def metric(url: str, name: str) -> float:
    text = httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))


def test_the_client_of_openai(client: openai.OpenAI, lm: Model) -> None:
    assert [model.id for model in client.models.list()] == ["mini-draft"]
    whole = client.completions.create(model="mini-draft", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=2)
    offline = lm.generate(PROMPT, max_tokens=12, logprobs=2)
    assert whole.choices[0].text == offline.text
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.token_logprobs == pytest.approx([d.logprob for d in offline.logprobs], abs=1e-4)
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model="mini-draft", messages=messages, temperature=0, max_completion_tokens=9)
    chunks = list(
        client.chat.completions.create(
            model="mini-draft",
            messages=messages,
            temperature=0,
            max_completion_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"method": "lookahead", "method_fields": {"window": 4}},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == chat.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chat.usage is not None
    assert chunks[-1].usage.completion_tokens == chat.usage.completion_tokens
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}},
    }
    said = client.chat.completions.create(model="mini-draft", messages=messages, max_tokens=30, response_format=form)
    assert list(json.loads(said.choices[0].message.content or "")) == ["ok"]


def test_errors_are_those_of_the_client(client: openai.OpenAI, url: str) -> None:
    with httpx.Client(trust_env=False) as http, pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url + "/v1", api_key="no", http_client=http).models.list()
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="mini-draft", prompt="x", temperature=-3)


def test_curl(url: str, lm: Model) -> None:
    body = json.dumps({"model": "mini-draft", "prompt": PROMPT, "temperature": 0, "max_tokens": 5})
    headers = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    command = ["curl", "-s", "--noproxy", "*", url + "/v1/completions", *headers, "-d", body]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert said["choices"][0]["text"] == lm.generate(PROMPT, max_tokens=5).text


def test_many_users_at_once(client: openai.OpenAI, lm: Model) -> None:
    methods = ["plain", "prompt_lookup", "lookahead", "beam", "jacobi", "token_recycling", "auto"]
    jobs = [(f"{PROMPT} number {i}", methods[i % len(methods)]) for i in range(24)]

    def one(job: tuple[str, str]) -> str:
        body = {"method": job[1]}
        done = client.completions.create(
            model="mini-draft", prompt=job[0], temperature=0, max_tokens=12, extra_body=body
        )
        return done.choices[0].text

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(one, jobs))
    assert answers == [lm.generate(prompt, method, max_tokens=12).text for prompt, method in jobs]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_memory(url: str, stream: bool) -> None:
    body = {"model": "mini-draft", "prompt": PROMPT, "max_tokens": 1900, "n": 8, "ignore_eos": True, "stream": stream}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(30, read=None if stream else 1.5)) as http:
        if stream:
            with http.stream("POST", url + "/v1/completions", json=body, headers=headers) as response:
                lines = response.iter_lines()  # letting go of it would close the connection
                assert next(lines).startswith("data: {")
                assert metric(url, "segue_kv_bytes") > 0
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url + "/v1/completions", json=body, headers=headers)
    begun = time.monotonic()
    while metric(url, "segue_kv_bytes") or metric(url, "segue_running"):
        assert time.monotonic() - begun < 2
        time.sleep(0.02)


def test_a_full_queue(launch: Launch) -> None:
    _, url = launch("--max-queue", "1", "--max-running", "1")
    body = {"model": "mini-draft", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}

    def one(_: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(url + "/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(one, range(12)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    refused = responses[statuses.index(429)]
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"


def test_sigterm_leaves_nobody_without_an_answer(launch: Launch, lm: Model) -> None:
    server, url = launch()
    answers: list[str] = []
    begun = threading.Event()

    def one() -> None:
        pieces = []
        with httpx.Client(trust_env=False) as http:
            client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, http_client=http)
            for chunk in client.completions.create(
                model="mini-draft",
                prompt=PROMPT,
                temperature=0,
                max_tokens=400,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                begun.set()
                pieces.append(chunk.choices[0].text)
        answers.append("".join(pieces))

    user = threading.Thread(target=one)
    user.start()
    assert begun.wait(30)
    server.send_signal(signal.SIGTERM)
    user.join(30)
    assert answers == [lm.generate(PROMPT, max_tokens=400, ignore_eos=True).text]
    _, log = server.communicate(timeout=20)
    assert server.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]
    assert lines[-1]["path"] == "/v1/completions"
    assert lines[-1]["tokens"] == 400


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.serve.running import read_keys

    (tmp_path / "keys").write_text("# note\n\none\n two \n")
    monkeypatch.setenv("SEGUE_API_KEYS", "three, four")
    assert read_keys(tmp_path / "keys") == ["one", "two", "three", "four"]
    assert read_keys(None) == ["three", "four"]
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no API key"):
        read_keys(tmp_path / "empty")
