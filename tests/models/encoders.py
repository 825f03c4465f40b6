"""Tiny encoders for tests: folders as transformers and sentence-transformers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "the", "old", "house", "on", "hill", "and", "a", "bird", "was", "in", "night", "man", "of", "time", "red", "door",
    "sea", "it", "is", "far", "away",
]  # fmt: skip


def save_tokenizer(folder: Path, longest: int = 64) -> Any:
    """Words and their letters, in the frame [CLS] text [SEP], pairs [CLS] query [SEP] document [SEP]."""
    letters = [chr(code) for code in range(97, 123)]
    vocab = {piece: i for i, piece in enumerate(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)])]
    )}  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=longest, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    made.save_pretrained(folder)
    return made


def _config(tokenizer: Any, longest: int, **more: Any) -> tf.BertConfig:
    return tf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=longest, pad_token_id=0, **more,
    )  # fmt: skip


def save_cross_encoder(folder: Path, labels: int = 1, longest: int = 64) -> tuple[Any, Any]:
    """A random cross-encoder whose scores differ; its network and tokenizer."""
    tokenizer = save_tokenizer(folder, longest)
    with torch.random.fork_rng():
        torch.manual_seed(labels)
        network = tf.BertForSequenceClassification(_config(tokenizer, longest, num_labels=labels)).eval()
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.data.mul_(12)
    network.save_pretrained(folder)
    return network, tokenizer


def save_encoder(folder: Path, pooling: str = "mean", **config: Any) -> Path:
    """A random encoder with sentence-transformers' files."""
    tokenizer = save_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tf.BertModel(_config(tokenizer, 64, **config)).save_pretrained(folder)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [{"idx": i, "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (n, path, kind) in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 16, "pooling_mode": pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder
