"""Real sentences on the embedded translator: what methods write is what transformers' generate writes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import sacrebleu
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from segue.bench.suites import FOLDER
from segue.data import Settings
from segue.decode.speculative.draft_model import DraftModel
from segue.laws import suite
from segue.laws.base import decode
from segue.laws.oracle import Answer, NetworkOracle
from segue.laws.same_tokens import Compared, compare
from segue.models.method import Method
from segue.models.source import EMBEDDED
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.load import load

SETTINGS = Settings(max_tokens=40)
SENTENCES = 60
ERROR = 1e-4  # scores closer than this are a tie in float32
METHODS = ["plain", "auto", "prompt_lookup", "token_recycling", "lookahead", "jacobi"]
FLOOR = 33.0  # BLEU on these sentences; the card has the figure of the whole test set


@dataclass(frozen=True)
class Reference:
    """The translator with what transformers answers to every sentence; computed once for all methods."""

    lm: TransformersLM
    sources: list[list[int]]
    answers: list[Answer]
    references: list[str]


@pytest.fixture(scope="module")
def reference() -> Reference:
    lm = load("mt-mini", dtype="float32")
    network = AutoModelForSeq2SeqLM.from_pretrained(EMBEDDED / "mt-mini", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "mt-mini")
    records = [json.loads(line) for line in (FOLDER / "translation.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = records[:: len(records) // SENTENCES][:SENTENCES]
    sources = [tokenizer(record["document"]).input_ids for record in chosen]
    answers = NetworkOracle(lm, network).answers(sources, SETTINGS)
    return Reference(lm, sources, answers, [record["reference"] for record in chosen])


def assert_same(name: str, method: Method, reference: Reference) -> int:
    """One batch of all sentences; returns the target forwards."""
    reference.lm.reset_stores()
    report = Compared()
    found = decode(reference.lm, method, reference.sources, SETTINGS)
    for number, (answer, expected) in enumerate(zip(found, reference.answers, strict=True)):
        compare(f"{name}, sentence {number}", number, answer, expected, ERROR, report)
    assert report.answers == SENTENCES
    assert report.tokens > 5 * SENTENCES
    assert len(report.near_ties) <= 1
    return sum(answer.stats.target_forwards for answer in found)


@pytest.mark.parametrize("name", METHODS)
def test_translations_are_those_of_transformers(name: str, reference: Reference) -> None:
    assert_same(name, suite.build(suite.load(name), reference.lm, suite.ORDINARY), reference)


def test_a_draft_that_is_the_translator_saves_forwards(reference: Reference) -> None:
    drafted = assert_same("draft_model", DraftModel(draft=reference.lm, gamma=4), reference)
    alone = assert_same("plain", suite.build(suite.load("plain"), reference.lm, suite.ORDINARY), reference)
    assert drafted < 0.5 * alone


def test_the_packaged_translator_translates(reference: Reference) -> None:
    """Held-out sentences; the model was trained to about the figure in its card."""
    written = [reference.lm.decode(answer.tokens) for answer in reference.answers]
    score = sacrebleu.corpus_bleu(written, [reference.references]).score
    print(f"BLEU {score:.1f} on {SENTENCES} held-out sentences")
    assert score > FLOOR
    assert all(answer.tokens[-1] in reference.lm.eos_ids for answer in reference.answers)
