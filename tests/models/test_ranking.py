"""Ranking against transformers' own batch, sentence-transformers' CrossEncoder, and brute-force cosines."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.models.crossencoder import CrossEncoder, cross_encoder
from segue.models.embedding import encoder
from segue.models.ranking import judge, rank, sigmoid

from .encoders import save_cross_encoder, save_encoder

QUERY = "the sea is red"
DOCUMENTS = ["a bird", "the old house on the hill", "the sea", "a man of the night", "the red door", "a bird"]


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_ranks_by_transformers_logits(tmp_path: Path, labels: int) -> None:
    network, tokenizer = save_cross_encoder(tmp_path / "rank", labels)
    ranked = rank(cross_encoder(str(tmp_path / "rank")), QUERY, DOCUMENTS)
    batch = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = network(**batch).logits.double()
    p = torch.sigmoid(logits[:, 0]) if labels == 1 else logits.softmax(-1)[:, 1]
    assert [score for _, score in ranked] == pytest.approx([float(p[i]) for i, _ in ranked], abs=1e-5)
    assert [score for _, score in ranked] == sorted((float(score) for _, score in ranked), reverse=True)
    assert sorted(i for i, _ in ranked) == list(range(6))
    order = [i for i, _ in ranked]
    assert order.index(0) + 1 == order.index(5)  # equal documents stay as they came
    assert max(s for _, s in ranked) - min(s for _, s in ranked) > 0.02


def test_sentence_transformers_gives_the_same_scores(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path / "rank")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import CrossEncoder as Reference

        theirs = Reference(str(tmp_path / "rank"), device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    ranked = rank(judge(str(tmp_path / "rank"), None), QUERY, DOCUMENTS)
    assert [score for _, score in ranked] == pytest.approx([float(theirs[i]) for i, _ in ranked], abs=1e-5)


def test_without_one_cosines_rank() -> None:
    model = judge(None, None)
    rows = np.stack([row.numpy() for row in encoder()([QUERY, *DOCUMENTS])])
    cosines = rows[1:] @ rows[0] / np.linalg.norm(rows[1:], axis=1)
    ranked = rank(model, QUERY, DOCUMENTS)
    assert [score for _, score in ranked] == pytest.approx(sorted(cosines, reverse=True), abs=1e-6)
    assert ranked[0][0] == int(cosines.argmax()) == 2


def test_documents_are_cut_only_where_they_may_be(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path / "rank", longest=16)
    model = CrossEncoder(tmp_path / "rank")
    long = "the old house " * 9
    with pytest.raises(ValueError, match=r"34 tokens together are longer than rank reads \(16\).*truncate"):
        rank(model, QUERY, ["a bird", long])
    assert len(model.tokens(QUERY, long, cut=True)["input_ids"]) == 16
    kept = " ".join(long.split()[:9])
    assert rank(model, QUERY, [long], cut=True) == rank(model, QUERY, [kept])
    with pytest.raises(ValueError, match="leaves no room"):
        rank(model, "sea " * 14, ["a bird"], cut=True)


def test_what_does_not_rank_is_refused(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path / "three", 3)
    with pytest.raises(ValueError, match="has 3 labels"):
        cross_encoder(str(tmp_path / "three"))
    with pytest.raises(ValueError, match="AutoModelForSequenceClassification finds no weights for classifier"):
        cross_encoder(str(save_encoder(tmp_path / "encoder")))
    with pytest.raises(ValueError, match="no reranker in"):
        cross_encoder(str(tmp_path / "none"))


def test_far_out_the_order_is_still_that_of_the_log_odds() -> None:
    assert sigmoid(-800) == 0
    assert sigmoid(800) == 1
    assert sigmoid(0.3) == pytest.approx(1 / (1 + np.exp(-0.3)))
