from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from segue.api import Model
from segue.cli import report

from .conftest import Call, make_model

PROMPT = "one two one two one"


def test_stdout_is_exactly_the_text(call: Call, tiny: Path, lm: Model) -> None:
    result = call("generate", PROMPT, "-m", tiny, "--max-tokens", 24)
    expected = lm.generate(PROMPT, max_tokens=24)
    assert result.code == 0
    assert result.out == expected.text
    for part in ("24 tokens", " tokens/s", "target forwards", "tokens/forward", "peak memory"):
        assert part in result.err
    assert result.err.count("\n") == 1


def test_json_is_one_object(call: Call, tiny: Path, lm: Model) -> None:
    result = call("generate", PROMPT, "-m", tiny, "--max-tokens", 8, "--json", "--logprobs", 2)
    answer = json.loads(result.out)
    expected = lm.generate(PROMPT, max_tokens=8, logprobs=2)
    assert result.err == ""
    assert set(answer) == {"text", "tokens", "finish_reason", "stats", "logprobs"}
    assert answer["tokens"] == expected.tokens
    assert answer["text"] == expected.text
    assert answer["finish_reason"] == "length"
    assert answer["stats"]["method"] == "auto"
    assert 1 <= answer["stats"]["target_forwards"] <= 8
    assert [row["token"] for row in answer["logprobs"]] == expected.tokens
    assert all(math.isclose(row["logprob"], row["top"][0][1]) for row in answer["logprobs"])


def test_settings_and_methods_reach_the_model(call: Call, tiny: Path, lm: Model) -> None:
    flags = ("--temperature", 0.8, "--top-k", 20, "--seed", 5, "--stop-tokens", 7, "--stop-tokens", 8)
    result = call("generate", PROMPT, "-m", tiny, "--max-tokens", 12, "--json", *flags)
    expected = lm.generate(PROMPT, max_tokens=12, temperature=0.8, top_k=20, seed=5, stop_tokens=(7, 8))
    assert json.loads(result.out)["tokens"] == expected.tokens
    biased = call("generate", PROMPT, "-m", tiny, "--max-tokens", 3, "--json", "--logit-bias", "70=1000")
    assert json.loads(biased.out)["tokens"] == [70, 70, 70]
    fast = call("generate", PROMPT, "-m", tiny, "--method", "prompt_lookup", "--set", "draft_tokens=3", "--json")
    answer = json.loads(fast.out)
    assert answer["stats"]["method"] == "prompt_lookup"
    assert answer["tokens"] == lm.generate(PROMPT).tokens


def test_stop_strings_are_left_out_of_the_stream(call: Call, tiny: Path, lm: Model) -> None:
    text = lm.generate(PROMPT, max_tokens=40).text
    stop = text[10:12]
    result = call("generate", PROMPT, "-m", tiny, "--max-tokens", 40, "--stop", stop)
    assert result.out == text[: text.index(stop)]


def test_samples(call: Call, tiny: Path) -> None:
    flags = ("-m", tiny, "--max-tokens", 6, "--n", 2, "--temperature", 1, "--seed", 3)
    answers = json.loads(call("generate", PROMPT, *flags, "--json").out)
    shown = call("generate", PROMPT, *flags)
    assert [answer["stats"]["tokens"] for answer in answers] == [6, 6]
    assert answers[0]["tokens"] != answers[1]["tokens"]
    assert shown.out == "".join(f"=== {i} of 2 ===\n{a['text']}\n" for i, a in enumerate(answers, start=1))


def test_all_ways_to_give_a_prompt_are_the_same(call: Call, tiny: Path, lm: Model, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    ids = " ".join(str(i) for i in lm.encode(PROMPT))
    common = ("-m", tiny, "--max-tokens", 6)
    outputs = {
        call("generate", *common, "--prompt-file", file).out,
        call("generate", *common, "--token-ids", ids).out,
        call("generate", *common, stdin=PROMPT.encode() + b"\n").out,
        call("generate", "-", *common, stdin=PROMPT.encode()).out,
        call("generate", PROMPT, *common, stdin=b"not read").out,
    }
    assert outputs == {lm.generate(PROMPT, max_tokens=6).text}


def test_a_model_without_a_tokenizer_shows_tokens_in_json(call: Call, broken: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    common = ("-m", broken, "--max-tokens", 4)
    shown = call("generate", "--token-ids", "5,6", *common)
    assert shown.out == ""
    assert "--json shows the tokens" in shown.err
    assert len(json.loads(call("generate", "--token-ids", "5,6", *common, "--json").out)["tokens"]) == 4
    assert "has no tokenizer" in call("generate", "text", *common).error()


def test_ctrl_c_leaves_with_130(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "show", lambda piece: os.kill(os.getpid(), signal.SIGINT))
    assert call("generate", PROMPT, "-m", tiny).code == 130


def test_nothing_but_the_text_comes_from_a_real_process(tiny: Path, lm: Model) -> None:
    command = [sys.executable, "-W", "default", "-m", "segue", "generate", PROMPT, "-m", str(tiny), "--max-tokens", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert result.stdout == lm.generate(PROMPT, max_tokens=5).text.encode()
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["x", "--temperature", "-1"], "temperature=-1.0 is not allowed"),
        (["x", "--top-p", "0"], "top_p=0.0 is not allowed"),
        (["x", "--max-tokens", "0"], "max_tokens=0 is not allowed"),
        (["x", "--max-tokens", "many"], "should be a valid integer"),
        (["x", "--logit-bias", "3:1"], "'3:1' is not ID=BIAS"),
        (["x", "--n", "0"], "--n 0 is not allowed"),
        (["x", "--method", "lookahead", "--set", "window"], "'window' is not NAME=VALUE"),
        (["x", "--method", "lookahead", "--set", "window=wide"], "a whole number"),
        (["x", "--token-ids", "1"], "two prompts"),
        (["--token-ids", "1 b"], "not a list of whole numbers"),
        (["--prompt-file", "/nowhere/p.txt"], "/nowhere/p.txt: No such file"),
        (["x", "-m", "/nowhere/model"], "no model at /nowhere/model"),
        (["x", "-m", "TINY", "--dtype", "int3"], "dtype='int3' is unknown"),
        (["x", "-m", "TINY", "--device", "abacus"], "device='abacus' cannot be used"),
        (["", "-m", "TINY"], "the prompt is empty"),
        (["-", "-m", "TINY"], "the prompt is empty"),
        (["x" * 300, "-m", "TINY"], "300 tokens, but tiny has a context of 256"),
        (["--token-ids", "5 999", "-m", "TINY"], "token id 999 is outside the vocabulary"),
        (["--token-ids", "", "-m", "TINY"], "the prompt is empty"),
        (["a\udcffb", "-m", "TINY"], "half a surrogate pair"),
        (["x", "-m", "TINY", "--method", "draft_model"], "has no draft model of its own"),
    ],
)
def test_what_a_user_may_get_wrong(call: Call, tiny: Path, arguments: list[str], fragment: str) -> None:
    assert fragment in call("generate", *[str(tiny) if a == "TINY" else a for a in arguments]).error()


def test_bytes_that_are_no_text_are_named_by_place(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"abc\xff")
    assert "prompt.txt is not UTF-8: byte 0xff at offset 3" in call("generate", "--prompt-file", file).error()
    assert "stdin is not UTF-8: byte 0xff at offset 0" in call("generate", stdin=b"\xff").error()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _garble_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _garble_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _garble_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])


def _truncate_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


def _drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _drop_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})


def _poison(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    save_file(tensors, file, {"format": "pt"})


def _shrink_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (_empty, "has no config.json"),
        (_garble_config, "cannot load broken"),
        (_garble_tokenizer, "cannot load the tokenizer"),
        (_garble_weights, "the weights of broken are damaged"),
        (_truncate_weights, "the weights of broken are damaged"),
        (_drop_weights, "cannot load broken"),
        (_drop_tensor, "model.layers.1.mlp.up_proj.weight"),
        (_poison, "NaN"),
        (_shrink_vocabulary, "broken"),
    ],
)
def test_damaged_model_folders(call: Call, broken: Path, damage: object, fragment: str) -> None:
    assert callable(damage)
    damage(broken)
    assert fragment in call("generate", "Hello", "-m", broken).error()


def test_a_draft_with_another_vocabulary_is_refused(call: Call, tiny: Path, tmp_path: Path) -> None:
    draft = make_model(tmp_path / "draft", seed=1, swapped=True)
    result = call("generate", "x", "-m", tiny, "--method", "draft_model", "--set", f"draft={draft}")
    assert "2 of 258 vocabulary entries differ" in result.error()
