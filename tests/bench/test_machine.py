"""doctor's numbers: the arithmetic, and that they are of this machine."""

from __future__ import annotations

import json

import pytest

import segue
from segue.bench.machine import Machine, diagnose, read_bandwidth
from segue.models.cost import Cost
from tests.cli.conftest import Call, call

__all__ = ["call"]


def test_the_limit_is_bandwidth_over_bytes() -> None:
    lm = segue.model(dtype="bfloat16").lm
    box = Machine("x", 2, 4, ("avx2",), 64 * 2**20, 50e9)
    found = diagnose(lm, box, Cost((1, 8), (0.004, 0.005)))  # type: ignore[arg-type]
    # The tied head is packed, so that the weights lie in memory once and a half; a token reads the head's copy.
    read = 2 * sum(p.numel() for p in segue.model(lean=False).lm.network.parameters())  # type: ignore[attr-defined]
    assert found["bytes_per_token"] == lm.bytes_per_token == read < lm.weight_bytes
    assert found["limit_tokens_per_second"] == pytest.approx(50e9 / read, rel=1e-3)
    assert found["plain_tokens_per_second"] == 250.0
    assert found["share_of_limit"] == pytest.approx(250 * read / 50e9, rel=1e-2)
    assert found["break_even"] == 0.25
    assert len(found["advice"]) == 3


def test_bandwidth_is_of_this_world() -> None:
    assert 1e8 < read_bandwidth(32 * 2**20, 3) < 1e13


def test_the_command_prints_words_or_json(call: Call) -> None:
    shown = call("doctor").out
    assert "t(k)/t(1)" in shown
    assert "tokens/s by memory bandwidth" in shown
    data = json.loads(call("doctor", "--json").out)
    assert data["cost"]["rows"][0] == 1
    assert data["machine"]["bandwidth"] > 0
