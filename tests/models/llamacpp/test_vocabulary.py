"""What is written of a tokenizer, and which tokenizers are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from segue.models.llamacpp.convert import convert
from tests.models.families import BASE
from tests.models.llamacpp.vocabularies import BYTE_LEVEL, PREFIXES, make

gguf = pytest.importorskip("gguf")


def written(tokenizer: Any, folder: Path, **config: Any) -> dict[str, Any]:
    size = {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    net = tf.LlamaForCausalLM(tf.LlamaConfig(**{**BASE, **size, **config}))
    fields = gguf.GGUFReader(convert(net, tokenizer, folder / "m.gguf")).fields
    return {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items()}


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_bytelevel(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind)
    found = written(tokenizer, tmp_path)
    types = found["ggml.token_type"]
    assert found["ggml.model"] == "gpt2"
    assert found["ggml.pre"] == kind
    assert found["segue.tokenizer.nfc"] is (kind == "qwen2")
    assert found["ggml.add_bos_token"] is (kind == "llama-bpe")
    assert found["ggml.add_eos_token"] is False
    assert found.get("ggml.bos_token_id") == tokenizer.bos_token_id
    assert found["ggml.eos_token_id"] == tokenizer.eos_token_id
    assert found["chat_template"] == tokenizer.chat_template
    assert types[tokenizer.convert_tokens_to_ids("<tool>")] == gguf.TokenType.USER_DEFINED
    assert types[tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert types.count(gguf.TokenType.NORMAL) > 800


@pytest.mark.parametrize("kind", PREFIXES)
def test_sentencepiece(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind)
    found = written(tokenizer, tmp_path)
    types, tokens = found["ggml.token_type"], found["ggml.tokens"]
    assert found["ggml.model"] == "llama"
    assert found["ggml.add_space_prefix"] is (kind != "never")
    assert found.get("segue.tokenizer.prefix") == (kind if kind in ("always", "first") else None)
    assert types[0] == gguf.TokenType.UNKNOWN
    assert types[1:3] == [gguf.TokenType.CONTROL] * 2
    assert types[3:259] == [gguf.TokenType.BYTE] * 256
    assert set(types[259:]) == {gguf.TokenType.NORMAL}
    made = [score for score, token in zip(found["ggml.scores"][259:], tokens[259:], strict=True) if len(token) > 1]
    assert made == sorted(made, reverse=True)


def test_rows_without_a_token_are_unused_and_further_ends_are_kept(tmp_path: Path) -> None:
    tokenizer = make("gpt-2")
    size = len(tokenizer)
    found = written(tokenizer, tmp_path, vocab_size=size + 2, eos_token_id=[tokenizer.eos_token_id, 2, 3])
    assert found["ggml.tokens"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found["ggml.token_type"][size:] == [gguf.TokenType.UNUSED] * 2
    assert (found["ggml.eot_token_id"], found["ggml.eom_token_id"]) == (2, 3)


def changed(kind: str, change: Callable[[dict[str, Any]], Any]) -> Any:
    state = json.loads(make(kind).backend_tokenizer.to_str())
    change(state)
    return tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


def with_part(kind: str, **parts: Any) -> Any:
    tokenizer = make(kind)
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def with_token(**flags: Any) -> Any:
    tokenizer = make("gpt-2")
    tokenizer.add_tokens([AddedToken("<mask>", **flags)])
    return tokenizer


def drop_a_merge(state: dict[str, Any], later: bool = False) -> None:
    """Take out one of several ways to make a token; `later`: put it at the end."""
    merges = state["model"]["merges"]
    made = ["".join(pair) for pair in merges]
    way = merges.pop(next(i for i, token in enumerate(made) if made.count(token) > 1))
    merges += [way] * later


def rename_a_byte(state: dict[str, Any]) -> None:
    vocab = state["model"]["vocab"]
    vocab["<nl>"] = vocab.pop("<0x0A>")


SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"\s+|\w+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
)
REFUSED = {
    "another regex": (lambda: with_part("gpt-2", pre_tokenizer=SPLIT), "pre-tokenizer of this tokenizer is none"),
    "no cutting": (lambda: changed("gpt-2", lambda s: s.update(pre_tokenizer=None)), "pre-tokenizer"),
    "prefix space": (lambda: with_part("gpt-2", pre_tokenizer=pre_tokenizers.ByteLevel(True)), "pre-tokenizer"),
    "whole words": (lambda: changed("qwen2", lambda s: s["model"].update(ignore_merges=True)), "ignore_merges True"),
    "word ends": (lambda: changed("gpt-2", lambda s: s["model"].update(end_of_word_suffix="$")), "end_of_word_suffix"),
    "lower case": (lambda: with_part("gpt-2", normalizer=normalizers.Lowercase()), r"rewrites text \(Lowercase\)"),
    "left strip": (lambda: with_token(lstrip=True), "'<mask>' is matched with lstrip"),
    "another model": (
        lambda: tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}))),
        "a WordPiece tokenizer",
    ),
    "odd surroundings": (
        lambda: with_part(
            "gpt-2", post_processor=processors.TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 2)])
        ),
        "bos in front and eos behind only",
    ),
    "a way missing": (lambda: changed("each", drop_a_merge), "never joins"),
    "out of order": (lambda: changed("each", lambda s: drop_a_merge(s, True)), "not next to each other"),
    "no bytes": (lambda: changed("each", rename_a_byte), "256 byte tokens"),
    "other spaces": (lambda: with_part("each", normalizer=normalizers.NFKC()), "treats spaces"),
    "other decoder": (lambda: changed("each", lambda s: s["decoder"]["decoders"].pop()), "decodes by"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llamacpp_cannot_reproduce_is_refused(case: str, tmp_path: Path) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        written(build(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no row in the model, which has 97"):
        written(make("gpt-2"), tmp_path, vocab_size=97)
