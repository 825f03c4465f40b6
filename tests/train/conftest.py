"""A corpus of a few invented lines in the folder layout of the real data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from segue.models.build import LlamaShape, T5Shape
from segue.train import LanguageModel, Translation


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


BUYERS = ("Tom", "Maria", "Peter", "Johanna")
BOUGHT = {"einen Hund": "a dog", "eine Katze": "a cat", "ein Haus": "a house", "zwei Boote": "two boats",
          "drei Pferde": "three horses", "Milch": "milk", "altes Brot": "old bread", "nichts": "nothing"}  # fmt: skip


@pytest.fixture(scope="session")
def bitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of a few words in every combination; some German sentences of the training part are held-out ones."""
    data = tmp_path_factory.mktemp("bitext")
    rows = [{"en": f"{who} bought {english}.", "de": [f"{who} kaufte {german}."]}
            for who in BUYERS for german, english in BOUGHT.items()]  # fmt: skip
    held = rows[::8] + rows[3::8]
    folder = data / "tatoeba_de_en"
    pack_rows(folder / "valid.jsonl.zst", held[:3])
    pack_rows(folder / "test.jsonl.zst", [*held[3:], {"en": "Tom did buy milk.", "de": [held[3]["de"][0]]}])
    twins = [{"en": "A twin.", "de": [text]} for text in ("einen Hund kaufte Tom", "Tom kaufte einen Hund!",
                                                          "Tom kaufte keinen Hund.")]  # fmt: skip
    pack_rows(folder / "train.jsonl.zst", [row for row in rows if row not in held] + twins)
    pack_rows(data / "ntrex" / "test.jsonl.zst", [{"de": "Die Milch ist alt.", "en": "The milk is old."}])
    return data


@pytest.fixture(scope="session")
def tiny() -> Translation:
    shape = T5Shape(400, 32, 48, 1, 1, 2, d_kv=16, dropout_rate=0.05)
    return Translation("tiny", shape, batch_tokens=192, micro_tokens=192, muon_lr=0.03, adam_lr=0.05)
