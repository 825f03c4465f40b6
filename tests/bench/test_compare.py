"""The bench measures what it says: the same prompts for all, forwards that a hook can count, loops told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import segue
from segue.bench.compare import Row, batched, compare, looping, summary
from tests.models.families import network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    network("llama").save_pretrained(folder)
    return folder


def test_rows_of_a_small_comparison(checkpoint: Path) -> None:
    model = segue.model(checkpoint)
    prompts = [[5, 9, 17, 5, 9], [40] * 9]
    names = ["plain", "token_recycling"]
    rows = compare(model, str(checkpoint), [segue.method(n) for n in names], names, prompts, max_tokens=12, rounds=2)
    assert [row.name for row in rows] == ["transformers", *names]
    assert all(len(row.seconds) == 2 and all(len(r) == 2 for r in row.seconds) for row in rows)
    records = list(summary(rows))
    assert [r["equal"] for r in records] == [2, 2, 2]
    plain = records[1]
    assert plain["tokens_per_forward"] == 1.0
    assert plain["target_forwards"] == plain["tokens"] == sum(len(t) for t in rows[0].tokens)
    assert records[2]["target_forwards"] < plain["target_forwards"]


def test_batched_tokens_are_the_same(checkpoint: Path) -> None:
    record = batched(segue.model(checkpoint), [[5, 9], [7] * 11, [3]], max_tokens=10, rounds=1)
    assert record["same_tokens"]
    assert record["prompts"] == 3


def test_ratio_is_the_median_of_rounds() -> None:
    base = Row("base", seconds=[[2.0], [4.0], [9.0]], tokens=[[1] * 10])
    fast = Row("fast", seconds=[[1.0], [1.0], [3.0]], tokens=[[1] * 10])
    assert fast.ratio_to(base) == (3.0, 2.0, 4.0)
    assert base.rate() == 10 / 4


def test_looping_outputs_are_told_apart() -> None:
    assert looping([1, 2, 3] * 10)
    assert not looping(list(range(30)))
    assert not looping([])


def test_the_command_prints_a_table_with_equal_tokens(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Once upon a time"}) + "\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "segue.bench", str(prompts), "--methods", "prompt_lookup:max_ngram=2"),
            *("--rounds", "1", "--max-tokens", "8"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "prompt_lookup:ma" in done.stdout
    assert "1 of 1" in done.stdout
    assert "same tokens: True" in done.stdout
