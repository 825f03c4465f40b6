"""What is counted, what is forgiven, and what is a fault."""

from __future__ import annotations

from typing import Any

import pytest

from segue.bench.load.client import BROKEN, HUNG, Reply
from segue.bench.load.figures import by_kind, compared, faults, outcomes, ratio, speeds
from segue.bench.load.questions import Known, Question

KNOWN = Known("abc", 3, ("", "a", "ab", "abc"), (2.0, 5e-5, 1.0))
REST = {"kv_bytes": 0.0, "running": 0.0, "queue_length": 0.0}


def reply(kind: str = "plain", known: Known | None = KNOWN, statuses: tuple[int, ...] = (200,), **more: Any) -> Reply:
    fields = {"begun": 1.0, "ended": 3.0, "status": 200, "text": "abc", "tokens": 3} | more
    return Reply(Question(kind, {"prompt": [1]}, known, statuses=statuses), **fields)


def test_answers_are_equal_near_or_different() -> None:
    replies = [
        reply(),
        reply(text="axc"),  # where the token led by 5e-5
        reply(text="xbc"),  # where it led by 2
        reply(text="ab", tokens=2),  # where it led by 1
        reply(known=None, text="anything"),
        reply(status=504, text=""),
    ]
    found = compared(replies, 1e-4)
    assert (found["checked"], found["equal"], found["near_ties"]) == (4, 1, 1)
    assert [one["gap"] for one in found["different"]] == [2.0, 1.0]
    assert compared(replies, 1.5)["near_ties"] == 2
    under = [reply(text="axc", known=Known("abc", 3, KNOWN.starts, ()))]
    assert len(compared(under, 1e-4)["different"]) == 1  # nothing is forgiven where no gap is known


def test_only_what_was_not_asked_for_is_a_fault() -> None:
    fine = [
        reply(),
        reply("deadline", statuses=(200, 504), status=504, trouble="deadline_exceeded"),
        reply("wrong request", statuses=(400,), status=400, trouble="invalid_request_error"),
        reply("leaves early", status=None, left=True),
        reply("leaves early"),
    ]
    none = {"different": []}
    assert faults(fine, none, REST) == []
    assert outcomes(fine) == {"200": 2, "400": 1, "499": 1, "504": 1}
    bad = [
        reply(status=None, trouble=HUNG, said="nothing came"),
        reply(status=None, trouble=BROKEN, said="reset"),
        reply(status=500, trouble="server_error", said="its log says why"),
        reply(status=200, trouble="deadline_exceeded", said="in the middle of a stream"),
        reply("wrong request", statuses=(400,)),
    ]
    lines = faults([*fine, *bad], {"different": [{"kind": "auto"}]}, REST | {"kv_bytes": 5.0})
    for said in (
        "hung",
        "broken: reset",
        "with 500",
        "in the middle",
        "wrong request",
        "answers to auto",
        "kv_bytes 5",
    ):
        assert any(said in line for line in lines), said
    assert len(lines) == 7


def test_speeds_are_of_those_who_stayed() -> None:
    streamed = reply(arrivals=[1.5, 1.6, 2.0])
    found = speeds([streamed, reply(), reply(left=True, tokens=9), reply(trouble=HUNG, tokens=9)], 2.0)
    assert (found["requests"], found["tokens"], found["tokens_per_second"]) == (4, 6, 3.0)
    assert found["first_token_seconds"] == [0.5, 0.5, 0.5]
    assert found["between_pieces_seconds"] == pytest.approx([0.25, 0.385, 0.4])
    (kind,) = by_kind([streamed])
    assert kind["outcomes"] == {"200": 1}


def test_a_ratio_is_of_all_tokens_in_all_seconds() -> None:
    one = [{"tokens": 100, "seconds": s} for s in (1.0, 1.0, 2.0)]
    many = [{"tokens": 1600, "seconds": s} for s in (3.0, 4.0, 5.0)]
    middle, low, high = ratio(many, one)
    assert middle == pytest.approx((4800 / 12) / (300 / 4), abs=1e-3)
    # The turns that favour one side most and least bound what can be drawn.
    assert (1600 / 4) / (100 / 1) <= low + 1e-9 <= middle <= high <= (1600 / 5) / (100 / 2) + 1e-3
