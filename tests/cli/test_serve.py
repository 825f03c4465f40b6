from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from segue.profile import Profile
from segue.serve import running
from tests.models.encoders import save_cross_encoder

from .conftest import Call


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FastAPI, str, int]]:
    """What was to be served, which is not listened for here."""
    seen: list[tuple[FastAPI, str, int]] = []
    monkeypatch.setattr("segue.cli.serve.listen", lambda host, port: socket.socket())
    monkeypatch.setattr(running, "serve", lambda app, host, port, **_: seen.append((app, host, port)))
    return seen


def test_what_is_wrong_is_told_before_a_model_is_loaded(call: Call, tmp_path: Path) -> None:
    assert "did you mean" in call("serve", "--method", "lokahead").error()
    assert "window" in call("serve", "--method", "lookahead", "--set", "windw=3").error()
    assert "no profile at" in call("serve", "--profile", tmp_path / "none.json").error()
    assert "max_queue=0" in call("serve", "--max-queue", 0).error()
    assert "none" in call("serve", "--api-key-file", tmp_path / "none").error()
    assert "--worker-cpus 2 says something about --replicas only" in call("serve", "--worker-cpus", 2).error()
    assert "port 0" in call("serve", "--replicas", 2, "--port", 0).error()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = call("serve", "-m", tmp_path / "no-model", "--port", taken.getsockname()[1]).error()
    assert "address already in use; give another --port or --host" in told


def test_the_operators_choice(
    call: Call, tiny: Path, tmp_path: Path, served: list[tuple[FastAPI, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(running.KEYS, raising=False)
    profile = tmp_path / "fast.json"
    Profile("prompt_lookup", {"max_ngram": 2}, "tiny", "float32", 1, "here").write(profile)
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    call(
        *("serve", "-m", tiny, "--method", "draft_model", "--set", f"draft={tiny}", "--set", "gamma=3"),
        *("--profile", profile, "--profile", f"other={profile}", "--api-key-file", keys, "--served-name", "small"),
    )
    ((app, host, port),) = served
    assert (host, port) == ("127.0.0.1", 8000)
    body: dict[str, Any] = {"model": "small", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
    headers = {"Authorization": "Bearer secret"}
    with TestClient(app, headers=headers) as client:
        answers = [
            client.post("/v1/completions", json=body | more)
            for more in (
                {"method": "plain"},
                {},  # the operator's method, with its draft model
                {"method": "multi_candidate"},  # another that takes the operator's draft model
                {"method_fields": {"gamma": 2}},
                {"profile": "fast"},
                {"profile": "other"},
            )
        ]
        assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        refused = client.post("/v1/completions", json=body | {"profile": str(profile)})
        assert refused.status_code == 400
        assert str(tiny) not in client.get("/v1/models").text
        used = client.get("/metrics").text
    for method in ("plain", "draft_model", "multi_candidate", "prompt_lookup"):
        assert f'segue_tokens_total{{method="{method}"}}' in used


def test_a_chat_template_is_the_tokenizers(
    call: Call, tiny: Path, tmp_path: Path, served: list[tuple[FastAPI, str, int]]
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    settings = model / "tokenizer_config.json"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": template}))
    call("serve", "-m", model, "--served-name", "small")
    ((app, _, _),) = served
    messages = [{"role": "user", "content": "Hello"}]
    with TestClient(app) as client:
        ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == "<user>Hello\n<assistant>"
        body = {"model": "small", "messages": messages, "max_tokens": 5, "temperature": 0}
        chat = client.post("/v1/chat/completions", json=body).json()
        asked = {"model": "small", "prompt": ids, "max_tokens": 5, "temperature": 0}
        plain = client.post("/v1/completions", json=asked).json()
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert chat["usage"]["prompt_tokens"] == len(ids)


def test_the_first_profile_serves_those_that_name_nothing(
    call: Call, tiny: Path, tmp_path: Path, served: list[tuple[FastAPI, str, int]]
) -> None:
    path = tmp_path / "fast.json"
    Profile("lookahead", {"window": 3}, "tiny", "float32", 1, "here").write(path)
    call("serve", "-m", tiny, "--profile", path, "--served-name", "small", "--kv-bytes", 10**7)
    ((app, _, _),) = served
    assert app.state.worker.engine.kv_budget == 10**7
    with TestClient(app) as client:
        answer = client.post("/v1/completions", json={"model": "small", "prompt": "Hello", "max_tokens": 4})
        assert answer.status_code == 200
        assert 'segue_tokens_total{method="lookahead"}' in client.get("/metrics").text


def test_encoders_beside_the_model(
    call: Call, tiny: Path, tmp_path: Path, served: list[tuple[FastAPI, str, int]]
) -> None:
    save_cross_encoder(tmp_path / "judge")
    call("serve", "-m", tiny, "--embedder", "minilm", "--reranker", tmp_path / "judge", "--cors", "https://a.example")
    ((app, _, _),) = served
    with TestClient(app) as client:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == ["tiny", "all-MiniLM-L6-v2", "judge"]
        found = client.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": "a bird"})
        assert len(found.json()["data"][0]["embedding"]) == 384
        ranked = client.post("/v1/rerank", json={"query": "the sea", "documents": ["a bird", "the red sea"]})
        assert ranked.json()["model"] == "judge"
        assert found.headers.get("access-control-allow-origin") is None
    assert "no encoder in" in call("serve", "-m", tiny, "--embedder", tmp_path).error()
    assert "trained to write" in call("serve", "-m", tiny, "--embedder", tiny).error()


def test_help_does_not_load_what_the_server_needs() -> None:
    code = (
        "import sys; from segue.cli import main; main(['serve', '--help']); "
        "heavy = {'torch', 'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
