"""What fewer bits cost is a comparison with known answers on an enumerable model, and is remembered."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.bench import quality as module
from segue.bench.quality import compare, quality
from segue.models.toy import ToyLM
from tests.cli.conftest import Call, call

__all__ = ["call"]


class Letters:
    """A tokenizer of three letters."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": ["abc".index(letter) for letter in text]}


def toy(seed: int) -> Any:
    lm = ToyLM(3, 1, seed)
    lm.tokenizer = Letters()
    return lm


def test_the_figures_are_those_of_the_tables() -> None:
    text = "abcabbacca" * 3
    ours, theirs = toy(0), toy(1)
    found = compare(ours, theirs, [text])
    ids = ["abc".index(letter) for letter in text]
    for lm, key in ((ours, "perplexity"), (theirs, "reference_perplexity")):
        logp = lm.table.log_softmax(-1)
        nats = -sum(float(logp[a, b]) for a, b in pairwise(ids)) / (len(ids) - 1)
        assert found[key] == pytest.approx(math.exp(nats), abs=1e-3)
    same = [int(ours.table[a].argmax()) == int(theirs.table[a].argmax()) for a in ids[:-1]]
    assert found["agreement"] == pytest.approx(sum(same) / len(same), abs=1e-3)
    assert compare(ours, ours, [text])["agreement"] == 1.0


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    lm = segue.model(quantize="int4").lm
    loaded = []

    def reference() -> Any:
        loaded.append(segue.model(dtype="float32").lm)
        return loaded[-1]

    first = quality(lm, reference)
    assert first["perplexity"] > first["reference_perplexity"]
    assert 0.7 < first["agreement"] < 0.99
    assert quality(lm, reference) == first
    assert len(loaded) == 1
    text = module.TEXT.read_text()
    assert len(text) > 10_000


def test_generate_says_what_quantizing_cost(call: Call) -> None:
    told = call("generate", "Hello", "--quantize", "int8", "--max-tokens", 4)
    assert "note: int8: perplexity" in told.err
    assert "note: int8" not in call("generate", "Hello", "--max-tokens", 4).err
    wrong = call("generate", "Hello", "--quantize", "int7")
    assert wrong.code == 2
    assert "choose from int8, int4" in wrong.err
