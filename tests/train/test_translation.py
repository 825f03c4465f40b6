from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from segue.models.build import END_OF_TEXT
from segue.train import RECIPES, LanguageModel, Translation, loop, recipes, train
from segue.train.pairs import heldout_pairs, training_pairs
from segue.train.publish import publish_translation
from segue.train.translation import TranslationTask

TOKENS = 12 * 192
LEARNING = 100 * 192


def quiet(text: str) -> None:
    pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def learned(tiny: Translation, bitext: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder where a tiny translator learned its few words."""
    out = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {**RECIPES, "tiny": tiny})
        train("tiny", data=bitext, out=out, tokens=LEARNING, say=quiet)
    return out


def test_it_learns_to_translate(learned: Path, bitext: Path) -> None:
    """By transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(learned / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(learned / "model", dtype=torch.float32).eval()
    for pair in training_pairs(bitext):
        ids = tokenizer(pair.source, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, num_beams=1, max_new_tokens=40)[0]
        assert int(out[0]) == model.config.decoder_start_token_id == tokenizer.pad_token_id
        assert tokenizer.decode(out, skip_special_tokens=True) == pair.target


def test_a_source_ends_with_the_end_of_text(learned: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(learned / "model")
    ids = tokenizer("Grüße,  3 Äpfel .\n").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == END_OF_TEXT == tokenizer.eos_token
    assert tokenizer.decode(ids[:-1]) == "Grüße,  3 Äpfel .\n"


def test_the_summary_reports_what_was_measured(learned: Path, tiny: Translation, bitext: Path) -> None:
    summary = json.loads((learned / "summary.json").read_text())
    assert summary["pairs"] == len(training_pairs(bitext))
    assert summary["tokens"] >= LEARNING
    assert summary["epochs"] > 10
    assert list(summary["heldout"]) == ["test", "test, 4 beams", "news"]
    task = TranslationTask(tiny, bitext, learned)
    task.model = AutoModelForSeq2SeqLM.from_pretrained(learned / "model", dtype=torch.float32)
    test = heldout_pairs(bitext, "test")
    written = task.translate([pair.source for pair in test])
    references = [[pair.target for pair in test]]
    # The summary's figure is of float32 weights, the saved ones are rounded.
    assert summary["heldout"]["test"]["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, references).score, abs=3)
    assert summary["heldout"]["test"]["sentences"] == len(test) == 5
    losses = [record["loss"] for record in map(json.loads, (learned / "log.jsonl").read_text().splitlines()[:-1])]
    assert losses[-1] < 0.2 * losses[0]


def test_a_translation_does_not_depend_on_others_beside_it(learned: Path, tiny: Translation, bitext: Path) -> None:
    task = TranslationTask(tiny, bitext, learned)
    task.model = AutoModelForSeq2SeqLM.from_pretrained(learned / "model", dtype=torch.float32)
    texts = [pair.source for pair in training_pairs(bitext)]
    assert task.translate(texts) == [task.translate([text])[0] for text in texts]
    assert task.translate(texts[::-1]) == task.translate(texts)[::-1]


def test_a_killed_run_ends_with_the_same_weights(
    tiny: Translation, bitext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, so that its chances have to be the same too."""
    assert tiny.shape.dropout_rate > 0
    train(tiny, data=bitext, out=tmp_path / "whole", tokens=TOKENS, say=quiet)
    real = loop._step

    def dying(run: loop.Run, spent: float) -> tuple[float, float]:
        if run.step == 5:
            raise RuntimeError("killed")
        return real(run, spent)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny, data=bitext, out=tmp_path / "killed", tokens=TOKENS, say=quiet)
    torch.manual_seed(1)
    said: list[str] = []
    train(tiny, data=bitext, out=tmp_path / "killed", tokens=TOKENS, say=said.append)
    assert any("resuming at step 5" in line for line in said)
    found, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_model_is_there_before_the_end(
    tiny: Translation, bitext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EXPORT_SECONDS", 0.0)
    real = loop._step

    def dying(run: loop.Run, spent: float) -> tuple[float, float]:
        if run.step == 2:
            raise RuntimeError("killed")
        return real(run, spent)

    monkeypatch.setattr(loop, "_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny, data=bitext, out=tmp_path, tokens=TOKENS, say=quiet)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").config.vocab_size == 400
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [set(record["heldout"]) for record in records if "heldout" in record] == [{"valid"}, {"valid"}]


def test_the_folder_of_another_recipe_is_refused(
    tiny: Translation, micro: LanguageModel, bitext: Path, corpus: Path, learned: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds the work of recipe 'tiny', not of 'micro'; name another out folder"):
        train(micro, data=corpus, out=learned, tokens=64, say=quiet)
    with pytest.raises(ValueError, match="other numbers than recipe 'tiny'"):
        train(dataclasses.replace(tiny, smoothing=0.2), data=bitext, out=learned, tokens=64, say=quiet)
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match=r"an earlier version of segue.*name another out folder"):
        train(tiny, data=bitext, out=tmp_path, tokens=64, say=quiet)


def test_a_refused_folder_is_left_as_it_was(micro: LanguageModel, corpus: Path, learned: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in learned.rglob("*")}
    with pytest.raises(ValueError, match="'tiny', not of 'micro'"):
        train(micro, data=corpus, out=learned, tokens=64, say=quiet)
    assert {path: path.stat().st_mtime_ns for path in learned.rglob("*")} == before


def test_what_a_user_may_get_wrong(tiny: Translation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'mt-mini' takes no teacher"):
        train("mt-mini", data=tmp_path, out=tmp_path / "a", teacher=tmp_path)
    with pytest.raises(ValueError, match=r"tatoeba_de_en/valid.*point data at"):
        train(tiny, data=tmp_path, out=tmp_path / "b", tokens=64, say=quiet)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"pip install 'segue\[train\]'"):
        train(tiny, data=tmp_path, out=tmp_path / "c", tokens=64, say=quiet)


def test_the_shipped_folder_loads_and_its_card_reports(
    tiny: Translation, bitext: Path, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, "tiny": tiny})
    publish_translation(learned, bitext, tmp_path / "embedded", tmp_path / "results")
    folder = tmp_path / "embedded" / "tiny"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    summary = json.loads((learned / "summary.json").read_text())
    card = (folder / "README.md").read_text()
    for name, score in summary["heldout"].items():
        assert f"| {name} | {score['bleu']:.1f} | {score['chrf']:.1f} | {score['sentences']} |" in card
    assert f"`segue train tiny --data DATA --tokens {LEARNING}`" in card
    assert "CC BY 2.0 FR" in card
    assert "| news | Die Milch ist alt. |" in card
    assert len(json.loads((tmp_path / "results" / "tiny.json").read_text())["curve"]) > 10


def test_the_work_of_a_language_model_is_not_published_as_a_translator(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"recipe": "mini"}')
    with pytest.raises(ValueError, match="recipe 'mini', which is no translator"):
        publish_translation(tmp_path, tmp_path, tmp_path, tmp_path)
