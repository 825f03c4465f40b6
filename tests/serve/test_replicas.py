"""`segue serve --replicas 2` as users meet it, with one of the two killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from segue.api import Model
from segue.serve import replicas
from segue.serve.recipe import Recipe

from ..conftest import Sessions

KEY = "a-key-for-tests"
PROMPT = "The house on the hill was old, and the house"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answered_by(url: str, count: int) -> set[str]:
    """Names of the replicas that answered some of so many scrapes."""
    found = set()
    for _ in range(count):
        text = httpx.get(url + "/metrics", headers=HEADERS, trust_env=False, timeout=60).text
        found |= {line.split('replica="')[1].split('"')[0] for line in text.splitlines() if 'replica="' in line}
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_one_killed_and_the_end(sessions: Sessions, lm: Model, tmp_path: Path) -> None:
    """One server for all of it: it takes long to start."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    url = f"http://127.0.0.1:{(port := free_port())}"
    log = (tmp_path / "log").open("wb")
    server = sessions.start(
        *(sys.executable, "-m", "segue", "serve", "-m", "mini-draft", "--dtype", "float32", "--replicas", 2),
        *("--port", port, "--api-key-file", keys, "--max-new-tokens", 1000),
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def client() -> openai.OpenAI:
        http = httpx.Client(trust_env=False, timeout=120)
        return openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, http_client=http)

    def ask(**more: Any) -> Any:
        with client() as made:
            body: dict[str, Any] = {"model": "mini-draft", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
            return made.completions.create(**body | more)

    def streamed(**more: Any) -> str:
        with client() as made:
            body: dict[str, Any] = {"model": "mini-draft", "prompt": PROMPT, "temperature": 0, "stream": True}
            return "".join(chunk.choices[0].text for chunk in made.completions.create(**body | more))

    last = time.monotonic() + 200
    while time.monotonic() < last:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            if httpx.get(url + "/ready", trust_env=False, timeout=60).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.2)
    expected = lm.generate(PROMPT, max_tokens=12).text

    # Two whole servers behind one address: keys, limits, streams and figures are theirs.
    names = answered_by(url, 30)
    assert len(names) == 2
    assert [ask().choices[0].text for _ in range(6)] == [expected] * 6
    assert streamed(max_tokens=12, extra_body={"method": "lookahead"}) == expected
    assert httpx.get(url + "/health", trust_env=False).json() == {"status": "ok"}
    assert httpx.get(url + "/v1/models", trust_env=False).status_code == 401
    with pytest.raises(openai.BadRequestError, match="1000"):
        ask(max_tokens=1001)

    # One is killed: the other goes on, and a new one takes its place.
    victim = sessions.members(server, "ray::ServeReplica")[0]
    os.kill(victim, signal.SIGKILL)
    working = 0
    last = time.monotonic() + 60
    while working < 8 and time.monotonic() < last:  # a request may have been on its way to the dead one
        try:
            assert ask().choices[0].text == expected
            working += 1
        except (openai.InternalServerError, openai.APIConnectionError):
            working = 0
    assert working == 8
    last = time.monotonic() + 120
    while not (after := answered_by(url, 30)) - names and time.monotonic() < last:
        time.sleep(0.5)
    assert len(after) == 2
    assert len(after & names) == 1

    # Told to end, it still gives the answer that it has begun.
    answers: list[str] = []
    user = threading.Thread(
        target=lambda: answers.append(streamed(max_tokens=900, extra_body={"ignore_eos": True, "method": "plain"}))
    )
    user.start()
    time.sleep(0.7)
    server.send_signal(signal.SIGTERM)
    user.join(100)
    assert answers == [lm.generate(PROMPT, "plain", max_tokens=900, ignore_eos=True).text]
    server.wait(60)
    assert server.returncode == 0, (tmp_path / "log").read_text()
    assert sessions.gone(server)
    log.close()


def test_what_cannot_be_served_is_told_at_once() -> None:
    recipe = Recipe(None, {}, "auto")
    with pytest.raises(ValueError, match="port 0"):
        replicas.serve(recipe, "127.0.0.1", 0, replicas=2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ValueError, match="cannot listen at"):
            replicas.serve(recipe, "127.0.0.1", other.getsockname()[1], replicas=2)


def test_the_line_that_says_what_was_wrong() -> None:
    report = "Deploying application segue failed: x\n  File y\nValueError: no model at z: give a folder\n\nmore"
    assert replicas._last(report) == "ValueError: no model at z: give a folder"
    assert replicas._last("nothing known\n") == "nothing known"
