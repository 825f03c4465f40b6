"""Bodies that cannot be read: the message names the place, the value and what would be right."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

CHAT = {"model": "mini", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}


def told(response: Any, status: int = 400) -> tuple[str, str | None]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert "Input should" not in error["message"]
    return error["message"], error["param"]


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"prompt": 5}, "prompt=5 is not allowed: a valid string or a valid list", "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1=1 is not allowed: a valid string or a valid list", "prompt.1"),
        ({"top_p": True}, "top_p=True is not allowed: a valid integer or a valid number", "top_p"),
        ({"max_tokens": -1}, "max_tokens=-1 is not allowed: greater than or equal to 1", "max_tokens"),
        ({"stream": "x" * 999}, f"stream='{'x' * 55} ... is not allowed: a valid boolean", "stream"),
        ({"choices": []}, "choices=[] is not allowed: at least 1 of them", "choices"),
        ({"suffix": "x"}, "suffix is not supported by this server: leave it out", "suffix"),
        ({"tools": []}, "tools is not supported by this server: leave it out", "tools"),
        ({"prompt": []}, "the prompt is empty: give at least one token (the begin-of-text id starts from nothing)",
         "prompt"),
    ],
)  # fmt: skip
def test_a_field_of_a_completion(client: TestClient, fields: dict[str, Any], message: str, param: str) -> None:
    body = {"model": "mini", "prompt": "a"} | fields
    assert told(client.post("/v1/completions", json=body)) == (message, param)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages=[] is not allowed: at least 1 of them"),
        ([{"role": "user"}], "messages.0.content is missing"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
         "messages.0.content.0.type='image_url' is not allowed: 'text'"),
        ([{"role": "tool", "content": "x"}],
         "messages.0.role='tool' is not allowed: 'system', 'developer', 'user' or 'assistant'"),
    ],
)  # fmt: skip
def test_a_message_of_a_chat(client: TestClient, messages: Any, message: str) -> None:
    assert told(client.post("/v1/chat/completions", json=CHAT | {"messages": messages}))[0] == message


def test_tools_are_named(client: TestClient) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    message, param = told(client.post("/v1/chat/completions", json=CHAT | {"tools": tools}))
    assert (message, param) == ("tools is not supported by this server: leave it out", "tools")


def test_what_curl_sends_without_a_header_is_told_of_it(client: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for content, headers in ((b'{"model": "mini", "prompt": "a"}', form), (b"", JSON), (b"[]", JSON)):
        message, param = told(client.post("/v1/completions", content=content, headers=headers))
        assert "Content-Type: application/json" in message
        assert param is None


def test_broken_json_is_told_with_its_place(client: TestClient) -> None:
    message, _ = told(client.post("/v1/completions", content=b'{"model": "mini", oops}', headers=JSON))
    assert message.startswith("the body is not JSON: ")
    assert message.endswith("at character 18")
    for content in (b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", "é".encode("latin-1")):
        message, _ = told(client.post("/v1/completions", content=content, headers=JSON))
        assert message.startswith("the body is not JSON")


def test_paths_and_methods_that_are_none(client: TestClient) -> None:
    message, _ = told(client.post("/v1/responses", json={}), 404)
    assert message.startswith("there is no /v1/responses on this server; it answers /v1/models, /v1/completions")
    refused = client.get("/v1/completions")
    assert told(refused, 405)[0] == "GET is not for /v1/completions: use POST"
    assert refused.headers["Allow"] == "POST"
    client.post("/v1/completions", json={"model": "mini", "prompt": "a", "max_tokens": 1})  # then it is ready
    for path in ("/health", "/ready"):  # some load balancers ask so
        assert client.head(path).status_code == 200


def test_an_answer_of_the_client_can_be_a_turn(client: TestClient) -> None:
    """As openai's message.model_dump() has it."""
    turn = {"role": "assistant", "content": "Hello.", "refusal": None, "annotations": None, "audio": None,
            "function_call": None, "tool_calls": None}  # fmt: skip
    body = CHAT | {"messages": [*CHAT["messages"], turn, {"role": "user", "content": "More"}], "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    asked = CHAT | {"messages": [turn | {"tool_calls": [{"id": "1"}]}]}
    assert "tool_calls" in told(client.post("/v1/chat/completions", json=asked))[0]


def test_a_value_of_megabytes_is_not_sent_back(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"model": "mini", "prompt": "a", "logit_bias": {"9" * 100_000: 1}})
    assert len(told(response)[0]) <= 1500


def test_too_many_strings_and_half_a_pair_are_refused(client: TestClient) -> None:
    body = {"model": "mini", "prompt": "a", "max_tokens": 2}
    for name in ("stop", "bad_words"):
        words = [f"x{i}" for i in range(1025)]
        message, param = told(client.post("/v1/completions", json=body | {name: words}))
        assert message == f"1025 strings in {name} are more than this server grants: at most 1024"
        assert param == name
    content = b'{"model": "mini", "prompt": "a", "bad_words": ["\\ud800"]}'
    message, _ = told(client.post("/v1/completions", content=content, headers=JSON))
    assert message.startswith("the text is not Unicode: half a surrogate pair")
