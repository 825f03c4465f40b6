"""Sequence classifiers as rewards, against transformers' own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import segue
from segue.choose.parts.scorer import named
from segue.models.classifier import classifier

TEXTS = ["Once upon a time", "the", "a much longer text than the others, by far, of many words " * 3]


def saved(folder: Path, labels: int, longest: int = 32) -> tuple[Path, Any, Any]:
    """A random classifier over the embedded model's tokens."""
    tokenizer = segue.model().lm.tokenizer
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=longest, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(labels)
    network = tf.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        network.score.weight.mul_(50)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, network, tokenizer


@torch.no_grad()
def logits(network: Any, tokenizer: Any, text: str, longest: int = 32) -> torch.Tensor:
    ids = tokenizer(text)["input_ids"]
    row: torch.Tensor = network(input_ids=torch.tensor([ids[-longest:]])).logits[0].double()
    return row


def test_one_output_is_the_score(tmp_path: Path) -> None:
    folder, network, tokenizer = saved(tmp_path, 1)
    found = named(f"classifier:{folder}").score("Hear this: ", TEXTS)
    expected = [float(logits(network, tokenizer, "Hear this: " + text)[0]) for text in TEXTS[:2]]
    assert found[:2] == pytest.approx(expected, abs=1e-4)
    tail = tokenizer("Hear this: " + TEXTS[2], truncation=True, max_length=32)["input_ids"]
    assert len(tail) == 32  # too long, and what comes last is what counts
    assert abs(found[2] - found[1]) > 1e-3
    assert classifier(str(folder))([TEXTS[2], "other words before " + TEXTS[2]])[0] == pytest.approx(
        classifier(str(folder))(["other words before " + TEXTS[2]])[0], abs=1e-5
    )


def test_labels_are_named(tmp_path: Path) -> None:
    folder, network, tokenizer = saved(tmp_path / "two", 2)
    row = logits(network, tokenizer, TEXTS[0])
    assert named(f"classifier:{folder}").score("", TEXTS[:1]) == pytest.approx([float(row[1] - row[0])], abs=1e-4)
    label = named(f"classifier:{folder}#LABEL_0").score("", TEXTS[:1])
    assert label == pytest.approx([float(row.log_softmax(-1)[0])], abs=1e-4)
    with pytest.raises(ValueError, match=r"label 'GOOD' is not known.*LABEL_0, LABEL_1"):
        named(f"classifier:{folder}#GOOD").score("", TEXTS)
    folder, *_ = saved(tmp_path / "three", 3)
    with pytest.raises(ValueError, match="one of 3 labels is to be named"):
        named(f"classifier:{folder}").score("", TEXTS)
    with pytest.raises(ValueError, match="no classifier in"):
        named(f"classifier:{tmp_path}/none").score("", TEXTS)
    network.base_model.save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"finds no weights for score\.weight"):
        named(f"classifier:{tmp_path}/headless").score("", TEXTS)


def test_cards_raises_a_classifiers_score(tmp_path: Path) -> None:
    folder, *_ = saved(tmp_path, 1, longest=128)
    model, settings = segue.model(), {"max_tokens": 24, "temperature": 1.0, "seed": 3}
    method = segue.method("cards", reward=f"classifier:{folder}", beta=0.05, r_star="quantile:0.9")
    answers = model.generate(["Once", "The"], method, **settings)
    plain = model.generate(["Once", "The"], "plain", **settings)
    score = named(f"classifier:{folder}").score
    better, before = (
        [score(prompt, [a.text])[0] for prompt, a in zip(["Once", "The"], found, strict=True)]
        for found in (answers, plain)
    )
    assert sum(better) > sum(before)
    for answer, value in zip(answers, better, strict=True):
        assert answer.candidates is not None
        assert answer.candidates[0].score == pytest.approx(value, abs=1e-4)
