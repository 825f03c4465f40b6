from __future__ import annotations

import json
from pathlib import Path

import pytest

import segue
from segue import catalog

from .conftest import Call


def test_json_is_what_the_library_lists(call: Call) -> None:
    listed = json.loads(call("methods", "--json").out)
    assert listed == json.loads(json.dumps(segue.methods()))
    (one,) = [card for card in listed if card["name"] == "lookahead"]
    assert json.loads(call("methods", "lookahead", "--json").out) == one


def test_the_table_has_every_method(call: Call) -> None:
    rows = call("methods").out.splitlines()
    for entry in catalog.entries().values():
        (row,) = [r for r in rows if r.split()[:2] == [entry.name, entry.family]]
        assert row.rstrip() == row.strip()


def test_a_page_has_algorithm_card_and_fields(call: Call) -> None:
    page = call("methods", "draft_model").out
    for part in (
        "1. The draft model q continues",
        "2211.17192, 2022",
        "Limit(knob=lenience, exact_at=1.0)",
        "2.6 speed-up over sampling, T=1 (T5-XXL 11B, EnDe, TPU-v4)",
        "tokens drafted per round",
    ):
        assert part in page
    assert "It has no fields." in call("methods", "plain").out


def test_results_are_shown_and_called_stale(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "RESULTS", tmp_path)
    assert "not measured" in call("methods", "lookahead").out
    file = tmp_path / "decode" / "speculative" / "lookahead.json"
    file.parent.mkdir(parents=True)
    result = {"source_hash": catalog.find("lookahead").source_hash(), "ratio": [1.25, 1.2, 1.3]}
    file.write_text(json.dumps(result))
    assert "1.25x transformers greedy" in call("methods", "lookahead").out
    file.write_text(json.dumps(result | {"source_hash": "old"}))
    assert "stale" in call("methods", "lookahead").out
