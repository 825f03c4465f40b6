"""`segue bench` on suites of quality, from the outside: the table, the files, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU, CHRF

from segue.api import Model
from segue.models.constraint import Constraint
from tests.cli import test_seq2seq

from .conftest import Call, write_lines

folder = test_seq2seq.folder  # a tiny T5
CASES = [
    {"prompt": "abc", "regex": "[0-9]{2}", "references": ["12"]},
    {"prompt": "Which one?", "choices": ["yes", "no"], "references": ["no"]},
    {"prompt": "Say it: Ne Win led Burma.", "passage": "Ne Win led Burma.", "kind": "extraction"},
    {"prompt": "JSON", "json_schema": {"enum": ["a", 3]}},
    {"prompt": "ab", "grammar": 'start: "a" "b"*'},
]
PAIRS = [
    {"prompt": "German: Er schläft.\nEnglish:", "document": "Er schläft.", "reference": "He sleeps."},
    {"prompt": "German: Ja.\nEnglish:", "document": "Ja.", "reference": "Yes."},
    {"prompt": "German: Das ist gut.\nEnglish:", "document": "Das ist gut.", "reference": "That is good."},
]


@pytest.fixture
def constrained(tmp_path: Path) -> Path:
    write_lines(tmp_path / "cases.jsonl", CASES)
    return tmp_path / "cases.jsonl"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


def figures(told: str) -> dict[str, dict[str, float]]:
    return {
        r["name"]: {name: figure["value"][0] for name, figure in r["figures"].items()}
        for r in json.loads(told)["records"]
    }


def test_constrained_answers_are_all_valid(call: Call, constrained: Path, tiny: Path, lm: Model) -> None:
    methods = "beam,prompt_lookup,exact_extract,sketch_guided,mbr:samples=2"
    told = call("bench", "--suite", constrained, "-m", tiny, "--methods", methods, "--max-tokens", 24, "--json")
    assert told.code == 0, told.err
    data = json.loads(told.out)
    names = ["plain, unconstrained", "plain", *methods.split(",")]
    assert [r["name"] for r in data["records"]] == names
    assert all(r["invalid"] == [] for r in data["records"])
    found = figures(told.out)
    for name in names[1:]:
        assert found[name]["valid"] + found[name]["unfinished"] == 100.0
    assert found["plain"]["valid"] >= 80.0
    assert found["plain, unconstrained"]["valid"] == 0.0
    assert (found["plain"]["checks_per_token"], found["plain"]["forwards_per_token"]) == (1.0, 1.0)
    assert found["prompt_lookup"]["log_p"] == found["plain"]["log_p"]
    assert found["beam"]["rows_per_token"] > found["plain"]["rows_per_token"]
    assert data["records"][names.index("exact_extract")]["cases"] == 1
    known = [lm.generate(c["prompt"], "plain", max_tokens=24, **{k: c[k]}).text
             for c, k in ((CASES[0], "regex"), (CASES[1], "choices"))]  # fmt: skip
    right = sum(text in c["references"] for text, c in zip(known, CASES, strict=False))
    assert found["plain"]["right"] == 50.0 * right


def test_an_invalid_answer_fails_the_command_by_name(
    call: Call, constrained: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constraint that masks nothing and takes everything: what the oracles are there for."""
    monkeypatch.setattr(Constraint, "apply", lambda self, scores, output: scores)
    monkeypatch.setattr(Constraint, "take", lambda self, output, last: False)
    told = call("bench", "--suite", constrained, "-m", tiny, "--methods", "prompt_lookup", "--max-tokens", 24)
    assert told.code == 1
    assert "invalid: plain: does not match [0-9]{2}" in told.err
    assert "invalid: prompt_lookup: none of the choices" in told.err
    assert "plain, unconstrained" not in told.err


def test_translations_are_scored_as_sacrebleu_does(call: Call, pairs: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--max-tokens", 12, "--methods", "beam:beams=3,dynamic_beam_allocation,mbr:samples=3", "-o", out)
    told = call("bench", "--suite", pairs, "-m", folder, *given, "--json")
    assert told.code == 0, told.err
    data = json.loads(told.out)
    by_name = {r["name"]: r for r in data["records"]}
    assert list(by_name) == ["plain", "beam:beams=3", "dynamic_beam_allocation", "mbr:samples=3"]
    import segue

    answers = segue.model(str(folder)).generate([p["document"] for p in PAIRS], "plain", max_tokens=12)
    texts, references = [a.text for a in answers], [p["reference"] for p in PAIRS]
    found = by_name["plain"]["figures"]
    assert found["bleu"]["value"][0] == pytest.approx(BLEU().corpus_score(texts, [references]).score, abs=1e-4)
    assert found["chrf"]["value"][0] == pytest.approx(CHRF().corpus_score(texts, [references]).score, abs=1e-4)
    assert found["oracle_bleu"] == found["bleu"]
    assert found["bleu"]["to_plain"] == [0.0, 0.0, 0.0]
    told_phrases = by_name["dynamic_beam_allocation"]
    assert told_phrases["says"].startswith("oracle")
    assert (told_phrases["cases"], told_phrases["figures"]["placed"]["value"][0]) == (2, 100.0)
    beam = by_name["beam:beams=3"]["figures"]
    assert beam["answers"]["value"][0] == 3.0
    assert beam["oracle_bleu"]["value"][0] >= beam["bleu"]["value"][0]
    assert 0 < beam["distinct_2"]["value"][0] < 1
    assert json.loads((out / "pairs.json").read_text())["records"] == data["records"]
    assert not list(out.glob("*.journal.jsonl"))
    html = (out / "pairs.html").read_text()
    HTMLParser().feed(html)
    assert html.count("<svg") == 3
    assert "oracle: told phrases of the reference" in html
    assert not re.findall(r"(?:src|href)=[\"']https?://", html)


def test_the_table_has_a_row_for_each(call: Call, pairs: Path, folder: Path) -> None:
    told = call("bench", "--suite", pairs, "-m", folder, "--max-tokens", 4, "--methods", "beam", "--limit", 2)
    assert told.code == 0
    for word in ("plain", "beam", "BLEU", "chrF", "oracle BLEU", "distinct 2-grams", "forwards/token", "seconds/plain"):
        assert word in told.out
    assert "checks/token" in told.out


def test_results_are_kept_in_a_checkout(
    call: Call, constrained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.catalog.RESULTS", tmp_path / "results")
    given = ("-m", tiny, "--methods", "exact_extract", "--max-tokens", 16, "--write", "--json")
    told = call("bench", "--suite", constrained, *given)
    assert told.code == 0, told.err
    assert json.loads((tmp_path / "results/bench/cases.json").read_text()) == json.loads(told.out)
    html = (tmp_path / "results/bench/cases.html").read_text()
    assert "valid % by kind" in html
    assert all(f"<th>{kind}</th>" in html for kind in ("regex", "choices", "extraction", "json_schema", "grammar"))


def test_a_killed_comparison_goes_on(constrained: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_lines(constrained, [{**CASES[n % 2], "prompt": f"{n}"} for n in range(300)])
    arguments = ["bench", "--suite", constrained, "-m", tiny, "--methods", "beam", "--max-tokens", 8, "-o", out]
    command = [sys.executable, "-m", "segue", *map(str, arguments)]
    journal = out / "cases.journal.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not journal.is_file() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = journal.read_bytes().split(b"\n")[:-1]
    assert 4 <= len(kept) < 301
    # What is kept is not asked again: an answer that is changed by hand stays so.
    changed = json.loads(kept[1])
    changed["answers"][1]["seconds"] = 1e6
    journal.write_bytes(b"\n".join([kept[0], json.dumps(changed).encode(), *kept[2:], b'{"case": 7, "ans']))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = json.loads((out / "cases.json").read_text())
    assert data["records"][1]["cases"] == 300
    assert data["records"][1]["figures"]["seconds"]["value"][0] > 1e6 / 300
    assert not journal.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "baem"], "did you mean beam"),
        (["--methods", "beam:beems=3"], "did you mean beams"),
        (["--methods", "beam@int8"], "on one model; name it with -m"),
        (["--methods", "tokenization_bias"], "tokenization_bias cannot take part: a constraint begins"),
        (["--rounds", "2"], "are for suites of speed"),
        (["--peers", "transformers"], "are for suites of speed"),
        (["--max-tokens", "0"], "max_tokens=0 is not allowed"),
        (["--limit", "0"], "--limit 0 is not allowed"),
    ],
)
def test_mistakes_are_told(call: Call, constrained: Path, tiny: Path, arguments: list[str], message: str) -> None:
    assert message in call("bench", "--suite", constrained, "-m", tiny, *arguments).error()


def test_a_wrong_line_is_named(call: Call, tmp_path: Path) -> None:
    write_lines(tmp_path / "own.jsonl", [CASES[0], {"prompt": "a"}])
    assert "own.jsonl line 2 has no constraint" in call("bench", "--suite", tmp_path / "own.jsonl").error()


@pytest.mark.parametrize(("package", "lines"), [("sacrebleu.metrics", PAIRS), ("jsonschema", CASES), ("lark", CASES)])
def test_a_missing_extra_is_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, lines: list[dict[str, Any]]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    write_lines(tmp_path / "own.jsonl", lines)
    told = call("bench", "--suite", tmp_path / "own.jsonl").error()
    assert f"the judge needs the package {package.partition('.')[0]}: pip install 'segue[bench]'" in told
