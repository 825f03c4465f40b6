"""The drafters that the package has for its model: they load by themselves, and guess well enough to be of use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segue
from segue import catalog
from segue.api import Model
from segue.models.heads import embedded
from segue.models.heads.base import SHEET
from segue.models.source import DRAFTERS

KINDS = sorted(path.parent.name for path in DRAFTERS.glob(f"*/*/{SHEET}"))
SUITE = Path(segue.__file__).parent / "bench" / "suites" / "spec.jsonl"
PROMPTS = [json.loads(line)["prompt"] for line in SUITE.read_text().splitlines()][::18]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")


def test_some_are_there_and_the_package_stays_small() -> None:
    assert {"blockwise_parallel", "chimera", "jakiro"} == set(KINDS)
    assert sum(path.stat().st_size for path in DRAFTERS.rglob("*") if path.is_file()) < 6_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_its_text_is_the_models_own_in_fewer_forwards(model: Model, kind: str) -> None:
    plain = model.generate(PROMPTS, method="plain", max_tokens=32)
    drafted = model.generate(PROMPTS, method=kind, max_tokens=32)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in plain]
    tokens = sum(answer.stats.tokens - 1 for answer in drafted)
    forwards = sum(answer.stats.target_forwards - answer.stats.prefill_forwards for answer in drafted)
    assert tokens / forwards > 1.3
    assert catalog.find(kind).able(has_draft=True)
    assert not catalog.find(kind).able(has_draft=False)


def test_in_another_precision_it_is_the_same_models() -> None:
    for kind in KINDS:
        assert embedded(segue.model(quantize="int8").lm, kind) == embedded(segue.model().lm, kind) is not None
        assert embedded(segue.model("mini-draft").lm, kind) is None
