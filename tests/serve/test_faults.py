"""A request that fails fails alone: weights that give NaN, forwards that raise, memory that runs out."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from segue.api import Model, Request, make_settings, resolve
from segue.serve.faults import Fault, failed
from segue.serve.metrics import Metrics
from segue.serve.worker import Ended, Event, Piece, Ticket, Worker

from .test_worker import Broken

GOOD = ["The house on the hill", "Once upon a time there was", "In the middle of the night the old man"]
METHODS = ["plain", "prompt_lookup", "lookahead"]
TOKENS = 40


def ask(ids: list[int], method: Any = "plain") -> tuple[Ticket, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    chosen = resolve(method) if isinstance(method, str) else method
    request = Request(ids, chosen, make_settings(max_tokens=TOKENS, ignore_eos=True))
    return Ticket([request], 1, events.put, stream=True), events


def ended(events: queue.Queue[Event]) -> Ended | Fault:
    event = events.get(timeout=60)
    while isinstance(event, Piece):
        event = events.get(timeout=60)
    return event


@pytest.fixture
def worker(lm: Model) -> Iterator[Worker]:
    made = Worker(lm, Metrics(), max_queue=100)
    made.start()
    yield made
    made.stop(10)


@contextmanager
def spoiled(lm: Model, before: Callable[[Any], None], after: Callable[[Any, Any], None]) -> Iterator[None]:
    """`before` sees every ask, `after` also its scores."""
    honest = lm.lm.forward

    def forward(asks: Any) -> Any:
        for one in asks:
            before(one)
        scores = honest(asks)
        for one, mine in zip(asks, scores, strict=True):
            after(one, mine)
        return scores

    vars(lm.lm)["forward"] = forward
    try:
        yield
    finally:
        del vars(lm.lm)["forward"]


def nothing(*_: Any) -> None:
    pass


def all_but_one(worker: Worker, lm: Model, bad: list[int], before: Any = nothing, after: Any = nothing) -> Fault:
    """What the bad request came to; the good ones, which run with it, get what the library gives."""
    offline = {
        (text, method): lm.generate(text, method, max_tokens=TOKENS, ignore_eos=True).text
        for text in GOOD
        for method in METHODS
    }
    with spoiled(lm, before, after):
        asked = {key: ask(lm.encode(key[0]), key[1]) for key in offline}
        tickets = list(asked.values())
        worst, told = ask(bad)
        for ticket, _ in (*tickets[:4], (worst, told), *tickets[4:]):
            worker.submit(ticket)
        fault = ended(told)
        for key, (_, events) in asked.items():
            found = ended(events)
            assert isinstance(found, Ended), found
            assert found.completion.text == offline[key]
        assert worker.ready
    assert isinstance(fault, Fault)
    assert worker.engine.reserved == worker.engine.running == 0
    return fault


def marked(lm: Model) -> int:
    """A token that no good prompt has, nor any answer to one."""
    used = {token for text in GOOD for token in lm.encode(text)}
    used |= {t for text in GOOD for t in lm.generate(text, "plain", max_tokens=TOKENS, ignore_eos=True).tokens}
    return max(set(range(100, lm.lm.vocab_size)) - used)


def test_nan_in_one_request_is_its_own(worker: Worker, lm: Model) -> None:
    token = marked(lm)

    def spoil(one: Any, scores: Any) -> None:
        if has(one, token):
            with torch.inference_mode():
                scores.packed.logits[scores.start : scores.start + len(scores.nodes)] = float("nan")

    fault = all_but_one(worker, lm, [*lm.encode(GOOD[0]), token], after=spoil)
    assert (fault.status, fault.code) == (500, "numeric_error")
    assert "NaN" in fault.message


def has(one: Any, token: int) -> bool:
    sequence, tree, _ = one
    return token in sequence.tokens or token in tree.tokens


@pytest.mark.parametrize("error", [RuntimeError("a kernel"), MemoryError(), torch.OutOfMemoryError("/home/x")])
def test_a_pack_that_fails_is_tried_one_by_one(worker: Worker, lm: Model, error: Exception) -> None:
    token = marked(lm)

    def refuse(one: Any) -> None:
        if has(one, token):
            raise error

    fault = all_but_one(worker, lm, [*lm.encode(GOOD[0]), token], before=refuse)
    assert fault.status == (500 if type(error) is RuntimeError else 503)
    assert "home" not in fault.message


def test_memory_that_runs_out_in_a_methods_own_code_ends_one_request(worker: Worker, lm: Model) -> None:
    fine, good = ask(lm.encode(GOOD[1]))
    worker.submit(fine)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):
        bad, told = ask(lm.encode(GOOD[0]), Broken(error))
        worker.submit(bad)
        fault = ended(told)
        assert isinstance(fault, Fault)
        assert (fault.status, fault.code) == (503, "out_of_memory")
        assert fault.headers["Retry-After"]
    found = ended(good)
    assert isinstance(found, Ended)
    assert found.completion.text == lm.generate(GOOD[1], "plain", max_tokens=TOKENS, ignore_eos=True).text


def test_other_errors_say_nothing_of_the_inside() -> None:
    assert failed(RuntimeError("/home/secret")).message == "the server failed to answer this request; its log says why"
