"""`segue index` from the outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.decode.speculative.store.dense import DenseStore
from segue.decode.speculative.store.suffix import SuffixStore
from segue.decode.speculative.store.trigram import open_table
from tests.cli.conftest import Call, make_model, write_lines

LINES: list[Any] = [
    {"text": "the cat sat on the mat"},
    {"prompt": "Ask: why?\n", "response": "because the cat sat", "id": 7},
    {"text": "a dog lay under the table\nand slept"},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_lines(tmp_path / "c.jsonl", LINES)
    return tmp_path / "c.jsonl"


def stream(store: Path) -> list[list[int]]:
    """The documents of a store."""
    kind = json.loads((store / "meta.json").read_text())["kind"]
    tokens = {"suffix": SuffixStore, "dense": DenseStore}[kind].open(store).tokens.tolist()
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token < 0:
            documents.append([])
        else:
            documents[-1].append(token)
    assert documents.pop() == []
    return documents


def test_a_suffix_store_of_lines_and_texts(call: Call, tiny: Path, lm: Model, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a plain text\nof two lines\n")
    out = tmp_path / "s"
    told = call("index", "build", corpus, tmp_path / "plain.txt", "-o", out, "-m", tiny, "--json")
    assert told.code == 0, told
    summary = json.loads(told.out)
    texts = [
        "the cat sat on the mat",
        "Ask: why?\nbecause the cat sat",
        LINES[2]["text"],
        "a plain text\nof two lines\n",
    ]
    assert stream(out) == [lm.encode(text) for text in texts]
    assert summary["documents"] == 4
    assert summary["tokens"] == sum(len(lm.encode(text)) for text in texts)
    assert summary["model"]["name"] == "tiny"
    assert [file["documents"] for file in summary["corpus"]["files"]] == [3, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "plain.txt", "s"]
    shown = call("index", "info", out, "--json")
    assert json.loads(shown.out) == {k: v for k, v in summary.items() if k != "seconds"}
    words = call("index", "info", out, "--check").out
    assert f"{out}: suffix store for tiny, 4 documents, {summary['tokens']} tokens" in words
    assert f"segue index build {corpus} {tmp_path / 'plain.txt'} -o {out} --kind suffix -m {tiny}" in words


def test_a_store_of_the_models_own_answers_saves_forwards(call: Call, tiny: Path, lm: Model, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [{"prompt": "Hello there", "response": "unused"}, {"prompt": "What now?"}])
    plain = lm.generate("Hello there", method="plain", max_tokens=40)
    for kind, method in (("suffix", "rest"), ("dense", "dresd")):
        out = tmp_path / kind
        built = call("index", "build", tmp_path / "p.jsonl", "-o", out, "-m", tiny, "--kind", kind, "--respond", 40,
                     *(("--set", "dims=16") if kind == "dense" else ()))  # fmt: skip
        assert built.code == 0, built
        assert stream(out)[0] == [*lm.encode("Hello there"), *plain.tokens]
        told = call("generate", "Hello there", "-m", tiny, "--method", method, "--set", f"index={out}",
                    "--max-tokens", 40, "--json")  # fmt: skip
        answer = json.loads(told.out)
        assert answer["tokens"] == plain.tokens
        assert answer["stats"]["target_forwards"] < len(plain.tokens) / 3
        chosen = call("generate", "Hello there", "-m", tiny, "--method", "auto", "--set", f"allow={method}",
                      "--set", f"index={out}", "--max-tokens", 40, "--json")  # fmt: skip
        answer = json.loads(chosen.out)
        assert answer["tokens"] == plain.tokens
        assert method in answer["stats"]["methods"]


def test_a_store_of_another_model_is_refused_with_both_names(
    call: Call, tiny: Path, corpus: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", swapped=True)
    assert call("index", "build", corpus, "-o", tmp_path / "s", "-m", tiny).code == 0
    error = call("generate", "x", "-m", other, "--method", "rest", "--set", f"index={tmp_path / 's'}").error()
    assert "was built for tiny and other has another tokenizer" in error
    seeded = make_model(tmp_path / "seeded", seed=1)
    assert call("index", "build", corpus, "-o", tmp_path / "d", "-m", tiny, "--kind", "dense").code == 0
    error = call("generate", "x", "-m", seeded, "--method", "dresd", "--set", f"index={tmp_path / 'd'}").error()
    assert "hidden states of tiny and seeded has others" in error


def test_a_store_is_replaced_only_by_force_and_never_by_bad_input(
    call: Call, tiny: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    assert call("index", "build", corpus, "-o", out, "-m", tiny).code == 0
    before = stream(out)
    assert "--force replaces it" in call("index", "build", corpus, "-o", out, "-m", tiny).error()
    write_lines(tmp_path / "bad.jsonl", [{"text": "new"}, b'{"text": "torn'])
    assert "bad.jsonl line 2 is not JSON" in call("index", "build", tmp_path / "bad.jsonl", "-o", out, "-m", tiny,
                                                  "--force").error()  # fmt: skip
    assert stream(out) == before
    write_lines(tmp_path / "new.jsonl", [{"text": "new"}])
    assert call("index", "build", tmp_path / "new.jsonl", "-o", out, "-m", tiny, "--force").code == 0
    assert len(stream(out)) == 1


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ([{"text": "a"}, {"prompt": "b"}], [], 'c.jsonl line 2 has a "prompt" but no "response"'),
        ([{"text": "a"}, {"words": "b"}], [], 'c.jsonl line 2 has neither "text" nor "prompt": it has words'),
        ([["text"]], [], "c.jsonl line 1 is not an object"),
        ([{"text": 5}], [], 'c.jsonl line 1: "text" is 5, which is not a text'),
        ([b'{"text": "\xff"}'], [], "c.jsonl line 1 is not UTF-8: byte 0xff at offset 10"),
        ([], [], "c.jsonl is empty"),
        ([{"prompt": "x" * 300}], ["--respond", "5"], "c.jsonl line 1: the prompt has 300 tokens"),
        (LINES, ["--respond", "0"], "--respond 0 is not allowed: at least 1"),
        (LINES, ["--kind", "sparse"], "--kind sparse is not known: choose from suffix, dense"),
        (LINES, ["--kind", "dense", "--set", "dim=4"], "has no option 'dim': did you mean dims?"),
        (LINES, ["--set", "dims=4"], "a suffix store has no option 'dims': it has none"),
        (LINES, ["--kind", "dense", "--set", "dims=four"], "dense: dims='four' is not allowed: a whole number"),
        (LINES, ["--kind", "dense", "--set", "search=lsh"], "search='lsh' is not allowed: flat, ivf or hnsw"),
    ],
)
def test_mistakes_are_told(
    call: Call, tiny: Path, lines: list[Any], flags: list[str], message: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "c.jsonl", lines)
    assert message in call("index", "build", tmp_path / "c.jsonl", "-o", tmp_path / "s", "-m", tiny, *flags).error()
    assert not (tmp_path / "s").exists()


def test_wrong_places_are_told(call: Call, tiny: Path, corpus: Path, tmp_path: Path) -> None:
    assert "No such file" in call("index", "build", tmp_path / "no.jsonl", "-o", tmp_path / "s", "-m", tiny).error()
    assert "is a folder: name the files" in call("index", "build", tmp_path, "-o", tmp_path / "s").error()
    assert "there is no folder" in call("index", "build", corpus, "-o", tmp_path / "a" / "s").error()
    assert "does not exist: `segue index build CORPUS" in call("index", "info", tmp_path / "s").error()
    assert "is not a datastore" in call("index", "info", tmp_path).error()
    assert "Build and look at datastores" in call("index").out


def test_a_damaged_store_is_an_error(call: Call, tiny: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert call("index", "build", corpus, "-o", out, "-m", tiny).code == 0
    data = bytearray((out / "suffixes.bin").read_bytes())
    data[8] ^= 1
    (out / "suffixes.bin").write_bytes(data)
    assert "the contents of suffixes.bin have changed" in call("index", "info", out).error()
    assert "suffixes.bin" in call("generate", "x", "-m", tiny, "--method", "rest", "--set", f"index={out}").error()


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on(call: Call, tmp_path: Path) -> None:
    """A real SIGKILL while the model answers; the store is then the one that an undisturbed build makes."""
    write_lines(tmp_path / "p.jsonl", [{"prompt": f"Question: What is {i} plus {i}?\nAnswer:"} for i in range(160)])
    flags = ["index", "build", str(tmp_path / "p.jsonl"), "--kind", "dense", "--respond", "24", "--dtype", "float32"]
    out, staging = tmp_path / "s", tmp_path / "s.building"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(segue.__file__).parents[1])}
    build = subprocess.Popen([sys.executable, "-m", "segue", *flags, "-o", str(out)], env=environment)
    journal = staging / "journal.jsonl"
    deadline = time.monotonic() + 120
    while build.poll() is None and not (journal.is_file() and len(journal.read_bytes().splitlines()) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(build.pid, signal.SIGKILL)
    assert build.wait() == -signal.SIGKILL
    before = len(journal.read_bytes().splitlines())
    assert not out.exists()
    assert before < 5
    shutil.copytree(staging, tmp_path / "witness")
    assert "--resume goes on with it" in call(*flags, "-o", out).error()
    assert "is not finished" in call("index", "info", out).error()
    done = subprocess.run([sys.executable, "-m", "segue", *flags, "-o", str(out), "--resume"], env=environment)
    assert done.returncode == 0
    # What had been read is what the store begins with, byte for byte.
    kept = (tmp_path / "witness" / "journal.jsonl").read_text().splitlines()[-1]
    rows = json.loads(kept)["arrays"]["tokens"]["shape"][0]
    begun = (tmp_path / "witness" / "tokens.bin").read_bytes()[: 4 * rows]
    assert (out / "tokens.bin").read_bytes().startswith(begun)
    assert call(*flags, "-o", tmp_path / "whole").code == 0
    assert stream(out) == stream(tmp_path / "whole")
    assert not staging.exists()


def test_a_table_of_trigrams(call: Call, tiny: Path, lm: Model, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.trigrams"
    told = call("index", "table", corpus, "-o", out, "-m", tiny, "--json")
    assert told.code == 0, told
    seen: dict[tuple[int, int], list[int]] = {}
    for line in LINES:
        ids = lm.lm.encode(line.get("text") or line["prompt"])
        ids += lm.lm.encode(line["response"], special=False) if "response" in line else []
        for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
            seen.setdefault((a, b), []).append(c)
    table = open_table(out)
    for pair, following in seen.items():
        best = sorted({*following}, key=lambda c: (-following.count(c), c))[:12]
        assert table.get(pair, {}) == pytest.approx({c: following.count(c) / len(following) for c in best})
    summary = json.loads(told.out)
    assert (summary["pairs"], summary["documents"]) == (len(seen), 3) == (len(table), 3)
    assert summary["bytes"] == out.stat().st_size
    for method, more in (
        ("aded", ()),
        ("auto", ("--set", "allow=aded")),
        ("rasd", ("--set", "retrieval=aded", "--set", "model=prompt_lookup")),
    ):
        answer = call("generate", "the cat sat", "-m", tiny, "--method", method, *more, "--set", f"table={out}",
                      "--max-tokens", "4")  # fmt: skip
        assert answer.code == 0, answer
    assert "--force replaces it" in call("index", "table", corpus, "-o", out, "-m", tiny).error()
    assert "is a folder: name a file" in call("index", "table", corpus, "-o", tmp_path, "-m", tiny).error()
    other = make_model(tmp_path / "other", swapped=True)
    refused = call("generate", "x", "-m", other, "--method", "aded", "--set", f"table={out}")
    assert "has another tokenizer" in refused.error()
