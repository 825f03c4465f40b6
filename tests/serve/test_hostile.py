"""Grammars that are meant to hold a server up: those who write meanwhile do not notice."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from segue.api import Model, Request, make_settings, resolve
from segue.models import grammar
from segue.serve.worker import Ended, Event, Piece, Ticket, Worker

from .conftest import Start

CPU_SECONDS = 0.5  # of the engine's thread between two tokens of somebody else, on a slow machine


def deep(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


# Terminals that overlap so that a mask has to tell hundreds of automata apart at every byte.
OVERLAP = "start: (" + " | ".join(f"T{i}" for i in range(400)) + ")*\n"
OVERLAP += "\n".join(f"T{i}: /[a-z]*{chr(97 + i % 26)}[a-z]{{{i % 40}}}/" for i in range(400))
RECURSION = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"$ref": "#/$defs/a"}}]}}}
HOSTILE: list[dict[str, Any]] = [
    {"regex": "(a{1,1000}){1,1000}"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"regex": "(a|b|ab){2000,30000}"},
    {"grammar": OVERLAP},
    {"grammar": 'start: a\na: a a a | a a | "x" | "y" | /x+/ | /[xy]+/ |'},
    schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}),
    schema(deep(60)),
    schema(deep(400)),
    schema(RECURSION | {"$ref": "#/$defs/a"}),
    {"choices": [f"choice {i}" for i in range(2000)]},
]


def complete(client: TestClient, **fields: Any) -> Any:
    body = {"model": "mini", "prompt": "The house", "temperature": 1, "seed": 1, "max_tokens": 12} | fields
    return client.post("/v1/completions", json=body)


def write(worker: Worker, lm: Model, tokens: int, deliver: Callable[[Event], None]) -> Ticket:
    settings = make_settings(max_tokens=tokens, ignore_eos=True)
    ticket = Ticket([Request(lm.encode("The house"), resolve("plain"), settings)], 1, deliver, stream=True)
    worker.submit(ticket)
    return ticket


def test_what_is_hostile_ends_in_time_and_others_write_on(start: Start, lm: Model) -> None:
    client: Any = start()
    worker: Worker = client.app.state.worker
    moments: list[float] = []
    ticket = write(worker, lm, 1900, lambda event: moments.append(time.thread_time()))
    answers = [complete(client, **fields) for fields in HOSTILE]
    worker.cancel(ticket)
    assert {answer.status_code for answer in answers} <= {200, 400, 422}, [answer.text[:200] for answer in answers]
    assert any(answer.status_code == 200 for answer in answers)
    assert answers[7].status_code == 400
    assert "recursion limit exceeded" in answers[7].json()["error"]["message"]
    assert all("<state>" not in answer.text for answer in answers)
    assert len(moments) > 10
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert max(gaps) < CPU_SECONDS


@pytest.mark.parametrize("levels", [200, 450, 480, 2000, 20_000])
def test_no_depth_is_the_servers_fault(start: Start, levels: int) -> None:
    nested = '{"items":' * levels + "true" + "}" * levels
    form = '{"type": "json_schema", "json_schema": {"schema": ' + nested + "}}"
    body = '{"model": "mini", "prompt": "a", "max_tokens": 3, "response_format": ' + form + "}"
    response = start().post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text[:300]


def test_a_grammar_that_is_compiled_holds_nobody_up(start: Start, lm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = start()
    begun, go = threading.Event(), threading.Event()
    threads: list[str] = []
    made = grammar.Grammar.__init__

    def slow(self: Any, *arguments: Any) -> None:
        threads.append(threading.current_thread().name)
        begun.set()
        assert go.wait(60)
        made(self, *arguments)

    monkeypatch.setattr(grammar.Grammar, "__init__", slow)
    answers: list[Any] = []
    asked = threading.Thread(target=lambda: answers.append(complete(client, regex="[0-9]{3} never asked before")))
    asked.start()
    assert begun.wait(30)
    events: queue.Queue[Event] = queue.Queue()
    write(client.app.state.worker, lm, 30, events.put)
    event = events.get(timeout=30)
    while not isinstance(event, Ended):  # somebody writes from beginning to end meanwhile
        assert isinstance(event, Piece)
        event = events.get(timeout=30)
    assert complete(client, max_tokens=3).status_code == 200  # and a request without a grammar is read and answered
    late = complete(client, regex="[0-9]{3} another", deadline=0.1)  # one with a grammar waits, as long as it may
    assert late.status_code == 504
    assert not answers
    go.set()
    asked.join(30)
    assert answers[0].status_code in (200, 422)
    assert threads
    assert all(name.startswith("segue-grammars") for name in threads)


def test_compiling_counts_towards_the_deadline(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = start()
    seen: list[float] = []
    made, submit = grammar.Grammar.__init__, Worker.submit

    def slow(self: Any, *arguments: Any) -> None:
        time.sleep(0.4)
        made(self, *arguments)

    def watched(self: Worker, ticket: Ticket) -> None:
        seen.append(time.monotonic() - ticket.arrived)
        submit(self, ticket)

    monkeypatch.setattr(grammar.Grammar, "__init__", slow)
    monkeypatch.setattr(Worker, "submit", watched)
    assert complete(client, regex="[0-9]{4} asked with a deadline", deadline=30).status_code == 200
    assert seen[0] >= 0.4


def test_two_requests_at_once_compile_what_they_share_once_it_is_there(start: Start, lm: Model) -> None:
    client = start()
    found: list[Any] = []
    regex = "(yes|no), and that is shared"

    def ask() -> None:
        found.append(complete(client, regex=regex, max_tokens=20))

    users = [threading.Thread(target=ask) for _ in range(6)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert [answer.status_code for answer in found] == [200] * 6
    assert len([key for key in lm.lm.compiled if key[:2] == ("regex", regex)]) == 1
    assert {json.dumps(answer.json()["choices"]) for answer in found} == {json.dumps(found[0].json()["choices"])}
