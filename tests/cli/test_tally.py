"""What a job has come to: each answer is written and counted once."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from segue.cli.answers import Answers
from segue.cli.tally import Tally

from .conftest import records


def test_an_answer_that_comes_twice_is_written_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("segue.cli.tally.time.perf_counter", lambda: float(next(clock)))
    with Answers(out, {"a", "b"}) as answers:
        answers.write("b", {"id": "b", "error": "no"})
        tally = Tally(answers, 2)
        with tally:
            tally.add("a", {"id": "a", "text": "first", "stats": {"tokens": 3}})
            tally.add("a", {"id": "a", "text": "again", "stats": {"tokens": 5}})
            tally.add("b", {"id": "b", "text": "late", "stats": {"tokens": 5}})
    assert {key: record.get("text") for key, record in records(out).items()} == {"a": "first", "b": None}
    summary = tally.summary()
    assert summary["seconds"] >= 1
    assert summary["tokens_per_second"] == pytest.approx(3 / summary["seconds"], abs=0.01)
    wanted = {"prompts": 2, "answered": 1, "skipped": 1, "failed": 1, "tokens": 3, "forwards": 0}
    assert {key: summary[key] for key in wanted} == wanted
