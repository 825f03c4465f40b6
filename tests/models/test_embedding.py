"""Sentence vectors against sentence-transformers on folders of every kind of pooling."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from segue.models.embedding import Encoder, encoder

from .encoders import save_encoder, save_tokenizer

TEXTS = ["the old house", "a bird", "The sea is far away and the night is red"]


def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are not ours
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_every_pooling_is_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    folder = save_encoder(tmp_path / "own", pooling)
    long = " ".join(TEXTS * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference(folder).encode([*TEXTS, long], batch_size=1, normalize_embeddings=True)
    own = Encoder(folder)
    assert np.abs(torch.stack(own([*TEXTS, long])).numpy() - theirs).max() < 1e-5
    assert own.name == "own"
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}_token": True}))
    if pooling == "cls":  # as older folders say it
        assert np.abs(torch.stack(Encoder(folder)(TEXTS)).numpy() - theirs[:3]).max() < 1e-5


def test_token_ids_stand_for_their_text() -> None:
    own = encoder()
    for text in TEXTS:
        ids = own.tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = own.frame.around(ids)
        assert framed == own.tokenizer(text)["input_ids"]
        assert torch.equal(own.vector(framed), own([text])[0])
    with pytest.raises(ValueError, match="token 99999999 is not in the vocabulary"):
        own.frame.around([99_999_999])
    assert own.tokens("") == own.tokenizer("")["input_ids"]  # the frame alone, as sentence-transformers has it
    own.frame.before, before = [], own.frame.before
    own.frame.behind, behind = [], own.frame.behind
    try:
        with pytest.raises(ValueError, match="without tokens"):
            own.tokens("")
    finally:
        own.frame.before, own.frame.behind = before, behind


def test_a_text_that_is_too_long_is_cut_only_where_it_may(tmp_path: Path) -> None:
    own = Encoder(save_encoder(tmp_path / "own"))
    with pytest.raises(ValueError, match=r"63 tokens is longer than the model reads \(62\).*truncate"):
        own.tokens("sea " * 63)
    assert own.tokens("sea " * 63, cut=True) == own.tokens("sea " * 62)


def test_a_vector_is_cut_only_where_the_model_was_trained_for_it(tmp_path: Path) -> None:
    own = Encoder(save_encoder(tmp_path / "own", matryoshka_dimensions=[8, 4]))
    whole, short = (own.vector(own.tokens(TEXTS[0]), width) for width in (None, 4))
    assert short.numpy() == pytest.approx((whole[:4] / whole[:4].norm()).numpy(), abs=1e-6)
    for model, width in ((own, 5), (encoder(), 128)):
        with pytest.raises(ValueError, match=f"dimensions={width}"):
            model.vector([2, 3], width)


def test_what_was_not_trained_for_vectors_is_refused(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LlamaForCausalLM, which was trained to write"):
        encoder(str(tmp_path))


def test_what_sentence_transformers_puts_on_top_is_done_or_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "max", "max")
    with pytest.raises(ValueError, match="pools by max; known are mean, cls, lasttoken"):
        Encoder(folder)
    folder = save_encoder(tmp_path / "dense")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="puts Dense on its encoder"):
        Encoder(folder)
