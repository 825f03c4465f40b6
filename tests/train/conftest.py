"""A corpus of a few invented lines in the folder layout of the real data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from segue.models.build import LlamaShape
from segue.train import LanguageModel


def pack(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(text.encode()))


def pack_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pack(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    sums = [{"question": f"What is {a} and {a}?", "answer": f"It is <<{a}+{a}={2 * a}>>{2 * a}.\n#### {2 * a}"}
            for a in range(60)]  # fmt: skip
    prompts = data / "decoding_prompts"
    pack_rows(prompts / "gsm8k_train.jsonl.zst", sums[:50])
    pack_rows(prompts / "gsm8k_test.jsonl.zst", sums[50:])
    pairs = [
        {"en": f"I have {a} cats.", "de": [f"Ich habe {a} Katzen.", f"{a} Katzen habe ich."]} for a in range(2, 40)
    ]
    pack_rows(data / "tatoeba_de_en" / "train.jsonl.zst", pairs[:30])
    pack_rows(data / "tatoeba_de_en" / "test.jsonl.zst", pairs[30:])
    squad = data / "squad_sample"
    pack_rows(squad / "contexts.jsonl.zst", [{"context_id": "a", "context": "Rain fell on Bonn."},
                                             {"context_id": "b", "context": "Snow fell on Ulm."}])  # fmt: skip
    asked = {"question": "What fell?", "answers": [{"text": "Rain", "start": 0}]}
    where = {"question": "Where?", "answers": [{"text": "Bonn", "start": 13}]}
    pack_rows(squad / "train.jsonl.zst", [{"context_id": "a", **asked}, {"context_id": "a", **where}])
    pack_rows(squad / "heldout.jsonl.zst", [{"context_id": "b", **asked}])
    pack(data / "wikitext2" / "valid.raw.txt.zst",
         " \n = Ulm = \n \n A town , in 1 @,@ 250 " + '" old " years .\n = Bonn = \n \n A city .\n')  # fmt: skip
    turns = [{"speaker": "user", "text": "Hello?"}, {"speaker": "system", "text": "Hello."}]
    pack_rows(data / "sgd" / "train.jsonl.zst", [{"turns": turns}])
    cases = [{"input": "", "output": "Yes."}, {"input": "No.", "output": "Yes."}]
    seeds = [{"instruction": "Agree.", "instances": cases}]
    pack_rows(prompts / "self_instruct_seed_tasks.jsonl.zst", seeds)
    task = {"text": "Add one.", "code": "def f(x):\r\n\treturn x + 1", "split": "train"}
    pack_rows(prompts / "mbpp.jsonl.zst", [task, {**task, "split": "test"}])
    return data


@pytest.fixture
def micro() -> LanguageModel:
    return LanguageModel(
        "micro",
        LlamaShape(300, 32, 1, 2, 1, 64, head_dim=16, max_position_embeddings=64),
        mixture={"maths": 0.6, "translation": 0.4},
        batch_tokens=64,
        micro_tokens=32,
        length=16,
        long_length=32,
    )
