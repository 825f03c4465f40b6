"""What answers are worth, against jsonschema's verdicts, hand-made texts and transformers' own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from segue.bench.cases import Case
from segue.bench.judge import fault, likelihood, need, parser, right
from segue.data import Settings
from segue.laws.worlds import World, network_world

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS = Path(__file__).parents[1] / "data" / "json_schemas.jsonl"


def of(**constraint: Any) -> Case:
    return Case("kind", "prompt", constraint=constraint)


def test_json_is_judged_as_the_test_suite_says() -> None:
    counted = 0
    for line in SCHEMAS.read_text().splitlines():
        record = json.loads(line)
        text = json.dumps(record["schema"])
        if not isinstance(record["schema"], dict) or "http" in text.replace(DIALECT, "") or r"\\p" in text:
            continue  # of other documents, or with patterns that Python's re lacks: refused when a suite is read
        for instance in record["valid"]:
            assert fault(of(json_schema=record["schema"]), json.dumps(instance)) is None, (record, instance)
        for instance in record["invalid"]:
            judged = fault(of(json_schema=record["schema"]), json.dumps(instance))
            wrong = not jsonschema.Draft202012Validator(record["schema"]).is_valid(instance)
            assert (judged is not None) == wrong, (record, instance)
            counted += wrong
    assert counted > 150


def test_what_is_no_json_is_a_fault() -> None:
    for text in ("", "{", "{} {}", "yes", '{"a": 1}}'):
        assert "not JSON" in (fault(of(json_schema=True if text == "yes" else {}), text) or "")
    assert fault(of(json_schema='{"type": "integer"}'), "3") is None
    assert fault(of(json_schema='{"type": "integer"}'), "3.5") == "3.5 is not of type 'integer'"


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({"regex": "[0-9]{3}"}, ["123"], ["12", "1234", "123\n", " 123"]),
        ({"choices": ["yes", " no"]}, ["yes", " no"], ["no", "yes ", ""]),
        ({"passage": "Ne Win led Burma."}, ["Ne Win", " Burma."], ["Win Ne", "", "  ", "Burma?"]),
        ({"grammar": 'start: "a" rest?\nrest: /[ab]+/ "c"'}, ["a", "abac", "aac"], ["", "ab", "ca", "abca"]),
    ],
)
def test_what_is_valid_and_what_is_not(constraint: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [fault(of(**constraint), text) for text in good] == [None] * len(good)
    assert all(fault(of(**constraint), text) for text in bad)


def test_an_ambiguous_grammar_is_read_in_every_way() -> None:
    """A greedy lexer would take all digits as the first number and find none left."""
    assert fault(of(grammar="start: A B\nA: /[0-9]+/\nB: /[0-9]/"), "123") is None


def test_a_grammar_that_the_oracle_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be judged by the Lark parser"):
        parser('start: %json {"type": "integer"}')


def test_right_is_as_squad_says() -> None:
    case = Case("kind", "prompt", references=("The Ne Win", "1998-05-03"))
    assert all(right(case, text) for text in (" ne win.", "Ne  Win", "the Ne Win", "1998-05-03"))
    assert not any(right(case, text) for text in ("Win", "Ne Winner", "", "1998-05-30"))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_likelihood_is_transformers(family: str) -> None:
    world: World = network_world(family)
    prompt = world.prompts[0]
    answer = world.oracle.answer(prompt, Settings(max_tokens=6))
    rows = answer.scores.double().log_softmax(-1)
    expected = float(rows[torch.arange(len(answer.tokens)), torch.tensor(answer.tokens)].sum())
    assert likelihood(world.lm, prompt, answer.tokens) == pytest.approx(expected, abs=1e-4)
    other = [(token + 1) % world.lm.vocab_size for token in answer.tokens]
    assert likelihood(world.lm, prompt, other) < expected
    assert likelihood(world.lm, prompt, []) == 0.0


def test_a_missing_package_is_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"needs the package nothing_like_it: pip install 'segue\[bench\]'"):
        need("nothing_like_it.metrics")
