"""The command line on an encoder-decoder: the prompt is its source, ended as its tokenizer ends one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast, T5Config

from segue.models.source import EMBEDDED

from .conftest import Call, records, write_lines

TEXT = "translate English to German: That is good."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5 whose tokenizer ends every source with the end of text, as T5's own does."""
    place = tmp_path_factory.mktemp("model") / "t5"
    ids = {c: i for i, c in enumerate(["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    ).save_pretrained(place)
    config = T5Config(
        vocab_size=len(ids), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForSeq2SeqLM.from_config(config)
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.data.normal_(0.0, 0.3)
        network.save_pretrained(place)
    return place


def expected(folder: Path, text: str, new: int) -> tuple[list[int], str]:
    """By transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = network.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, num_beams=1, max_new_tokens=new)
    tokens = [int(t) for t in out[0, 1:]]
    return tokens, tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("method", ["auto", "prompt_lookup"])
def test_generate(call: Call, folder: Path, method: str) -> None:
    tokens, text = expected(folder, TEXT, 24)
    result = call("generate", TEXT, "-m", folder, "--max-tokens", 24, "--method", method)
    assert result.code == 0
    assert result.out == text
    answer = json.loads(call("generate", TEXT, "-m", folder, "--max-tokens", 24, "--method", method, "--json").out)
    assert answer["tokens"] == tokens
    assert answer["text"] == text
    assert answer["stats"]["prompt_tokens"] == len(TEXT) + 1


def test_the_embedded_translator(call: Call) -> None:
    german = "Tom hat einen Hund."
    result = call("generate", german, "-m", "mt-mini", "--dtype", "float32")
    assert result.code == 0, result.err
    assert result.out == expected(EMBEDDED / "mt-mini", german, 24)[1] == "Tom has a dog."


def test_run(call: Call, folder: Path, tmp_path: Path) -> None:
    texts = {"a": TEXT, "b": "summarize: no", "c": ""}
    write_lines(tmp_path / "in.jsonl", [{"id": name, "prompt": text} for name, text in texts.items()])
    result = call("run", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-m", folder, "--max-tokens", 9)
    assert "3 prompts, 1 failed" in result.err
    found = records(tmp_path / "out.jsonl")
    for name in "ab":
        assert found[name]["tokens"] == expected(folder, texts[name], 9)[0]
    assert "the prompt is empty" in found["c"]["error"]


def test_bench_and_doctor(call: Call, folder: Path) -> None:
    flags = ("-m", folder, "--suite", "spec", "--limit", 2, "--rounds", 1, "--max-tokens", 8, "--json")
    result = call("bench", *flags, "--methods", "plain,prompt_lookup,token_recycling")
    assert result.code == 0, result.err
    rows = {r["name"]: r for r in json.loads(result.out)["records"]}
    assert rows["transformers"]["prompts"] == 2
    for method in ("plain", "prompt_lookup", "token_recycling"):
        assert rows[method]["equal"] == 2
    found = json.loads(call("doctor", "-m", folder, "--json").out)
    assert found["cost"]["rows"][0] == 1


def test_what_cannot_be(call: Call, folder: Path) -> None:
    assert "the prompt is empty" in call("generate", "", "-m", folder).error()
    assert "leave invariant out" in call("generate", "x", "-m", folder, "--invariant").error()
    assert "4096" in call("generate", "x" * 5000, "-m", folder).error()
    draft = call("generate", "x", "-m", folder, "--method", "draft_model", "--set", "draft=mini")
    assert "cannot draft for" in draft.error()
