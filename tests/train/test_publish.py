from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from segue.train import RECIPES, LanguageModel, recipes, train
from segue.train.publish import loss_curve, publish


def quiet(text: str) -> None:
    pass


def test_the_shipped_folder_loads_and_its_card_reports(
    micro: LanguageModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = dataclasses.replace(micro, name="mini")
    draft = dataclasses.replace(micro, name="mini-draft", distil=0.5)
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, "mini": target, "mini-draft": draft})
    train("mini", data=corpus, out=tmp_path / "first", tokens=128, say=quiet)
    train("mini", data=corpus, out=tmp_path / "a", tokens=256, start=tmp_path / "first" / "model", say=quiet)
    train("mini-draft", data=corpus, out=tmp_path / "b", tokens=256, teacher=tmp_path / "a" / "model", say=quiet)
    embedded = tmp_path / "embedded"
    publish(tmp_path / "a", tmp_path / "b", corpus, embedded, tmp_path / "results")

    model = AutoModelForCausalLM.from_pretrained(embedded / "mini", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(embedded / "mini-draft")
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.generation_config.eos_token_id
    for text in ("Grüße,  3 Äpfel .\n", "今日は"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    card = (embedded / "MODEL_CARD.md").read_text()
    assert "`segue train mini-draft --data DATA --teacher TEACHER --tokens 256`" in card
    assert "| mini, run 1 | 128 | 2 |" in card
    assert "| `segue train mini --data DATA --start EARLIER --tokens 256` | 256 | 4 |" in card
    assert card.count("▶") == 5  # two samples for each source, and the mark where it is explained
    assert "| translation | Tatoeba" in (embedded / "LICENSE-DATA.md").read_text()
    record = json.loads((tmp_path / "results" / "mini.json").read_text())
    assert record["tokens"] == 256
    assert len(record["curve"]) == 4


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": n, "loss": n % 2, "tokens": n, "seconds": n}) for n in range(1, 1001)]
    log.write_text("\n".join(lines))
    curve = loss_curve(log)
    assert len(curve) == 200
    assert curve[0] == {"tokens": 5, "seconds": 5, "loss": 0.6}
