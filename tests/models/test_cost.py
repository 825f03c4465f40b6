"""The cost curve: measured quickly, remembered, re-measured where the file is damaged, and read by straight lines."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segue.laws.worlds import network_world, toy_world
from segue.models import cost
from segue.models.cost import FLAT, ROWS, Cost, cost_of
from segue.models.transformers.lm import TransformersLM


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersLM:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    found = network_world("llama").lm
    assert isinstance(found, TransformersLM)
    return found


def test_lines_between_points_and_on_behind_the_last() -> None:
    curve = Cost((1, 2, 8), (1.0, 1.2, 2.4))
    assert [curve.step(k) for k in (1, 2, 5, 8)] == pytest.approx([1.0, 1.2, 1.8, 2.4])
    assert curve.step(14) == pytest.approx(3.6)
    assert Cost((1, 8, 16), (1.0, 3.0, 2.0)).step(64) == 2.0  # noise at the end does not make rows cheaper
    assert FLAT.step(1000) == 1.0
    assert toy_world(2).lm.cost is FLAT


def test_it_is_measured_in_time_and_remembered(lm: TransformersLM) -> None:
    begin = time.perf_counter()
    measured = cost_of(lm)
    assert time.perf_counter() - begin < 3.5
    assert measured.rows == tuple(k for k in ROWS if k <= measured.rows[-1])
    assert measured.path is not None
    assert measured.path.is_file()
    assert cost_of(lm) == measured  # to the last bit: the same decisions in the next process
    assert cost_of(lm, refresh=True).path == measured.path


@pytest.mark.parametrize("damage", ["", "{", '{"rows": [2], "seconds": [1]}', '{"rows": [1, 2], "seconds": [1, "x"]}'])
def test_a_damaged_file_is_measured_again(lm: TransformersLM, damage: str) -> None:
    path = cost_of(lm).path
    assert path is not None
    path.write_text(damage)
    assert cost_of(lm).rows[0] == 1
    assert json.loads(path.read_text())["rows"][0] == 1


def test_threads_have_curves_of_their_own(lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    first, threads = cost_of(lm).path, torch.get_num_threads()
    monkeypatch.setattr(cost.torch, "get_num_threads", lambda: threads + 1)
    try:
        assert cost_of(lm).path != first
    finally:
        torch.set_num_threads(threads)  # forwards set what they were told


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    lm: TransformersLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))
    curve = cost_of(lm)
    assert curve.path is None
    assert curve.rows[0] == 1


def test_a_slow_model_shows_its_curve_in_the_time_there_is(lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))  # every look at the clock is a second
    curve = cost.measure(lm)
    assert curve.rows[0] == 1
    assert len(curve.rows) >= 2
    assert replace(curve, path=None) == curve
    assert os.environ["SEGUE_CACHE"]
