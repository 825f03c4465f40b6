from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import segue
from segue.api import Model
from segue.models.conversation import STOP
from segue.models.prefixes import Prefixes
from segue.serve.bodies import ChatBody, CompletionBody
from segue.serve.choosing import Choosing
from segue.serve.limits import Limits

from .conftest import Start

PROMPT = "The house on the hill was old, and the house"


def complete(client: TestClient, **fields: Any) -> Any:
    body = {"model": "mini", "prompt": PROMPT, "temperature": 0, "max_tokens": 16} | fields
    return client.post("/v1/completions", json=body)


def talk(client: TestClient, **fields: Any) -> Any:
    body = {"model": "mini", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 16}
    return client.post("/v1/chat/completions", json=body | fields)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def error_of(response: Any, status: int) -> Any:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


@pytest.mark.parametrize("method", ["plain", "auto", "prompt_lookup", "lookahead", "jacobi", "beam"])
def test_an_answer_is_what_the_library_gives(client: TestClient, lm: Model, method: str) -> None:
    answer = complete(client, method=method).json()
    offline = lm.generate(PROMPT, method, max_tokens=16)
    assert answer["choices"][0]["text"] == offline.text
    assert answer["choices"][0]["finish_reason"] == offline.finish_reason
    assert answer["usage"]["completion_tokens"] == len(offline.tokens)
    assert answer["usage"]["prompt_tokens"] == len(lm.encode(PROMPT))


def test_several_prompts_samples_and_echo(client: TestClient, lm: Model) -> None:
    ids = lm.encode("Two birds")
    sampled = {"temperature": 0.9, "seed": 5}
    answer = complete(client, prompt=[ids, lm.encode(PROMPT)], n=2, echo=True, max_tokens=6, **sampled).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    offline = lm.generate([ids, lm.encode(PROMPT)], n=2, max_tokens=6, **sampled)
    assert texts == ["Two birds" + one.text for one in offline[0]] + [PROMPT + one.text for one in offline[1]]
    assert answer["usage"]["prompt_tokens"] == len(ids) + len(lm.encode(PROMPT))


def test_best_of_gives_the_likeliest(client: TestClient, lm: Model) -> None:
    made = lm.generate(PROMPT, n=4, temperature=1.0, seed=3, max_tokens=8, logprobs=0)
    best = max(made, key=lambda one: sum(d.logprob for d in one.logprobs) / len(one.logprobs))
    answer = complete(client, best_of=4, temperature=1.0, seed=3, max_tokens=8).json()
    assert [choice["text"] for choice in answer["choices"]] == [best.text]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == sum(len(one.tokens) for one in made)
    error_of(complete(client, n=3, best_of=2), 400)


def test_log_probabilities(client: TestClient, lm: Model) -> None:
    offline = lm.generate(PROMPT, "plain", max_tokens=5, logprobs=2)
    given = complete(client, max_tokens=5, logprobs=2).json()["choices"][0]["logprobs"]
    assert given["token_logprobs"] == pytest.approx([d.logprob for d in offline.logprobs], abs=1e-4)
    assert "".join(given["tokens"]) == offline.text
    assert all(len(top) == 2 for top in given["top_logprobs"])
    assert [offline.text[at:][: len(t)] for at, t in zip(given["text_offset"], given["tokens"], strict=True)] == (
        given["tokens"]
    )
    content = talk(client, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert all(len(one["top_logprobs"]) == 3 and one["bytes"] == list(one["token"].encode()) for one in content)


@pytest.mark.parametrize("method", ["plain", "lookahead", "beam"])
def test_an_echo_with_log_probabilities_scores_the_prompt(client: TestClient, lm: Model, method: str) -> None:
    text = "The old house on the hill had a red door. " * 20
    ids = lm.encode(text)
    choice = complete(client, prompt=text, echo=True, logprobs=1, max_tokens=4, method=method).json()["choices"][0]
    offline = lm.generate(text, method, max_tokens=4, logprobs=1)
    assert choice["text"] == text + offline.text
    given = choice["logprobs"]["token_logprobs"]
    assert given[0] is None
    # Each prompt token is what one token generated behind those before it would be, were it forced.
    for place in (1, 2, len(ids) // 2, len(ids) - 1):
        forced = lm.generate(ids[:place], "plain", max_tokens=1, logprobs=0, logit_bias={ids[place]: 1000})
        assert forced.tokens == [ids[place]]
        assert given[place] == pytest.approx(forced.logprobs[0].logprob, abs=1e-3)
    assert given[len(ids) :] == pytest.approx([d.logprob for d in offline.logprobs], abs=1e-3)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_a_stream_says_the_same_piece_by_piece(client: TestClient) -> None:
    whole = complete(client, method="prompt_lookup", logprobs=1).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = complete(client, method="prompt_lookup", logprobs=1, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response.text)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert len(chunks) > 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    logprobs = [p for c in chunks if c["choices"][0]["logprobs"] for p in c["choices"][0]["logprobs"]["tokens"]]
    assert logprobs == whole["choices"][0]["logprobs"]["tokens"]


def test_a_chat_in_the_plain_form(client: TestClient, lm: Model) -> None:
    offline = lm.generate("User: Hello\nAssistant:", max_tokens=16, stop=[STOP])
    choice = talk(client).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": offline.text.lstrip(), "refusal": None}
    chunks = events(talk(client, stream=True, n=2).text)
    for index in (0, 1):
        mine = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in mine) == offline.text.lstrip()
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert talk(client, messages=parts).json()["choices"][0] == choice


def test_settings_reach_the_engine(client: TestClient, lm: Model) -> None:
    penalties: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    assert (
        complete(client, **penalties).json()["choices"][0]["text"]
        == lm.generate(PROMPT, max_tokens=16, **penalties).text
    )
    first = lm.generate(PROMPT, max_tokens=1).tokens[0]
    biased = complete(client, logit_bias={str(first): -100}, max_tokens=1).json()["choices"][0]["text"]
    assert biased == lm.generate(PROMPT, max_tokens=1, logit_bias={first: -100}).text != lm.lm.decode([first])
    text = lm.generate(PROMPT, max_tokens=16).text
    stopped = complete(client, stop=[text[10:14]]).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[:10], "stop")


def test_answers_follow_a_schema(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = json.loads(talk(client, response_format=form, max_tokens=40).json()["choices"][0]["message"]["content"])
    assert list(said) == ["n"]
    assert isinstance(said["n"], int)
    said = talk(client, response_format={"type": "json_object"}, max_tokens=40).json()["choices"][0]["message"]
    assert isinstance(json.loads(said["content"]), dict)


def test_a_prediction_saves_forwards_and_changes_nothing(client: TestClient, lm: Model) -> None:
    text = lm.generate(PROMPT, max_tokens=40).text
    exact = complete(client, max_tokens=40, prediction={"type": "content", "content": text}).json()
    assert exact["choices"][0]["text"] == text
    assert exact["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] >= 30
    edited = text[:40] + " zebra" + text[40:]
    other = complete(client, max_tokens=40, prediction={"type": "content", "content": edited}).json()
    assert other["choices"][0]["text"] == text
    details = other["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] >= 20
    assert details["rejected_prediction_tokens"] > 0
    error_of(complete(client, prediction={"content": text}, method="plain"), 400)


def test_tokens_there_and_back(client: TestClient, lm: Model) -> None:
    found = client.post("/tokenize", json={"prompt": PROMPT}).json()
    assert found["tokens"] == lm.encode(PROMPT)
    assert found["count"] == len(found["tokens"])
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"] == PROMPT
    error_of(client.post("/detokenize", json={"tokens": [10**9]}), 400)


def test_state(client: TestClient) -> None:
    complete(client, method="lookahead")
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 200
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "mini"
    assert client.get("/v1/models/mini").json() == model
    error_of(client.get("/v1/models/other"), 404)
    text = client.get("/metrics").text
    for name in ("time_to_first_token", "inter_token", "tokens_per_forward", "acceptance", "queue_length", "kv_bytes"):
        assert f"segue_{name}" in text
    assert 'segue_tokens_total{method="lookahead"}' in text
    assert "segue_kv_bytes 0.0" in text


BAD: list[dict[str, Any]] = [
    {"model": "other"},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [10**9]},
    {"prompt": 7},
    {"prompt": "half \ud800"},
    {"max_tokens": 0},
    {"max_tokens": 10**6},
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_p": 0},
    {"n": 10**6},
    {"n": True},
    {"stop": [""]},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"99999999": 1}},
    {"regex": "("},
    {"regex": "a" * 100_000},
    {"grammar": "start: nowhere"},
    {"response_format": {"type": "json_schema"}},
    {"method": "nonesuch"},
    {"method": "lookahead", "method_fields": {"windw": 1}},
    {"method": "lookahead", "method_fields": {"window": 10**9}},
    {"method": "draft_model", "method_fields": {"draft": "/etc/passwd"}},
    {"method": "graph_constrained", "method_fields": {"file": "/etc/passwd"}},
    {"method": "sketch_guided", "method_fields": {"url": "http://169.254.169.254/"}},
    {"method": "sketch_guided", "method_fields": {"key": "HOME"}},
    {"method": "mbr", "method_fields": {"utility": "os:system"}},
    {"method": "cards", "method_fields": {"reward": "classifier:/etc"}},
    {"method": "rest", "method_fields": {"index": "/tmp"}},
    {"profile": "nonesuch"},
    {"deadline": -1},
    {"unheard_of": 1},
    {"echo": True, "logprobs": 1, "n": 2},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: str(fields)[:60])
def test_bad_requests_are_told_so_in_the_shape_of_the_api(client: TestClient, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "mini", "prompt": PROMPT, "max_tokens": 4} | fields)
    response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    error = error_of(response, 404 if fields.get("model") else 400)
    assert error["message"]
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model":', b"\xff\xfe", b"[" * 50_000, b'{"n":1e999}'])
def test_corrupt_bodies(client: TestClient, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        error_of(response, 400)


def test_limits_of_the_operator(start: Start) -> None:
    client = start(choosing=Choosing(limits=Limits(max_prompt_tokens=8, max_body_bytes=500)))
    error = error_of(complete(client), 400)
    assert "at most 8" in error["message"]
    assert error_of(complete(client, prompt="x" * 1000), 413)["code"] == "body_too_large"
    chunked = client.post("/v1/completions", content=(b"x" * 400 for _ in range(2)))
    error_of(chunked, 413)
    assert complete(client, prompt="Two birds").status_code == 200


def test_keys(start: Start) -> None:
    client = start(keys=["secret", "other"])
    assert client.get("/health").status_code == 200
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
        error_of(client.get("/v1/models", headers=header), 401)
        error_of(client.get("/metrics", headers=header), 401)
    for key in ("secret", "other"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_pages_of_an_origin_may_ask_from_a_browser(start: Start) -> None:
    client = start(keys=["secret"], cors=["https://here.example"])
    ask = {"Origin": "https://here.example", "Access-Control-Request-Method": "POST"}
    ask["Access-Control-Request-Headers"] = "authorization,content-type"
    asked = client.options("/v1/completions", headers=ask)  # as browsers do, without the key
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://here.example"
    refused = client.get("/v1/models", headers={"Origin": "https://here.example"})
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://here.example"  # the page can read why
    other = client.options("/v1/completions", headers=ask | {"Origin": "https://there.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in start().get("/health", headers={"Origin": "https://a.example"}).headers
    assert start().get("/version").json() == {"version": segue.__version__}


def test_what_the_operator_set_serves_requests(start: Start, lm: Model) -> None:
    client = start(choosing=Choosing("prompt_lookup", {"draft_tokens": "5"}))
    offline = lm.generate(PROMPT, max_tokens=16)
    assert complete(client).json()["choices"][0]["text"] == offline.text
    assert complete(client, method_fields={"max_ngram": 2}).status_code == 200
    assert 'method="prompt_lookup"' in client.get("/metrics").text


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(start: Start, lm: Model) -> None:
    client = start(prefixes=Prefixes(10**8))
    shared = "The old house on the hill had a red door and seven windows. " * 10
    for end, cached in (("Then a man", False), ("She went", True), ("She went", True)):
        answer = complete(client, prompt=shared + end, method="plain", stream=False).json()
        assert answer["choices"][0]["text"] == lm.generate(shared + end, "plain", max_tokens=16).text
        reused = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert reused > 100 if cached else reused == 0
    text = client.get("/metrics").text
    assert "segue_prefix_hits 2.0" in text
    assert "segue_kv_bytes 0.0" in text


SLOW: list[dict[str, Any]] = [
    {"regex": "(((a{1,500}){1,500}){1,500})"},
    {"regex": ".{0,30000}x.{0,30000}"},
    {"regex": "(.*a){25}"},
    {"grammar": 'start: a\na: a a | "x" | "y"'},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": {"enum": [f"value{i}" for i in range(2000)]}},
        }
    },
]


@pytest.mark.parametrize("fields", SLOW, ids=lambda fields: str(fields)[:60])
def test_grammars_that_explode_hold_nobody_up(client: TestClient, fields: dict[str, Any]) -> None:
    begun = time.monotonic()
    assert complete(client, **fields).status_code in (200, 400, 422)
    assert time.monotonic() - begun < 3


VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    3,
    2.5,
    1e300,
    10**30,
    "",
    "x",
    "plain",
    "\x00",
    [],
    ["x"],
    [1],
    [[1]],
    {},
    {"1": 2},
]
NAMES = [*CompletionBody.model_fields, *ChatBody.model_fields, "bogus"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    st.dictionaries(
        st.sampled_from([name for name in NAMES if name not in ("model", "stream")]), st.sampled_from(VALUES)
    ),
    st.booleans(),
)
def test_whatever_is_sent_is_never_the_servers_fault(client: TestClient, fields: dict[str, Any], chat: bool) -> None:
    response = (talk if chat else complete)(client, **({"max_tokens": 2} | fields))
    if response.status_code != 200:
        assert 400 <= response.status_code < 500
        error_of(response, response.status_code)
    assert client.get("/ready").status_code == 200


def test_one_of_several_servers_labels_what_it_measures(start: Start) -> None:
    client = start(replica="left")
    body = {"model": "mini", "prompt": PROMPT, "max_tokens": 3, "method": "plain"}
    assert client.post("/v1/completions", json=body).status_code == 200
    said = client.get("/metrics").text
    assert 'segue_tokens_total{method="plain",replica="left"} 3.0' in said
    samples = [line for line in said.splitlines() if not line.startswith("#")]
    assert all('replica="left"' in line for line in samples)
    assert 'replica="left"' in client.get("/metrics").text  # once more: labels are not gathered
    assert said.count("replica=") == len(samples)


def test_bytes_of_tokens_are_those_of_the_text_also_of_half_a_character(client: TestClient) -> None:
    answer = talk(client, logprobs=True, choices=["é🙂 日本"]).json()["choices"][0]
    tokens = answer["logprobs"]["content"]
    assert "\ufffd" in "".join(one["token"] for one in tokens)
    assert bytes(byte for one in tokens for byte in one["bytes"]).decode() == answer["message"]["content"] == "é🙂 日本"
