"""A tiny random model with a byte tokenizer, and the command line called in this process."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import segue
from segue.api import Model
from segue.cli import main

VOCABULARY = 258


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of an error of the user's making."""
        assert self.code == 2, self
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        return self.err


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """call("generate", "Hello", stdin=b"") -> exit code, stdout, stderr."""

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def make_model(folder: Path, *, seed: int = 0, swapped: bool = False) -> Path:
    """Two layers, a vocabulary of the 256 bytes, end of text and padding; `swapped`: two bytes changed places."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if swapped:
        characters[0], characters[1] = characters[1], characters[0]
    ids = {character: i for i, character in enumerate(["<|endoftext|>", "<|pad|>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=256, eos_token_id=0, bos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.data *= 6  # far enough from uniform that greedy text varies
        network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def lm(tiny: Path) -> Model:
    """The same model through the library: the oracle of what the command must give."""
    return segue.model(str(tiny))


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def run(call: Call, tiny: Path, tmp_path: Path, out: Path) -> Call:
    """run(lines, *flags): writes in.jsonl unless lines is None, and answers it into `out` with 4 tokens a line."""

    def start(lines: list[Any] | None, *flags: object) -> Result:
        if lines is not None:
            write_lines(tmp_path / "in.jsonl", lines)
        return call("run", tmp_path / "in.jsonl", "-o", out, "-m", tiny, "--max-tokens", 4, *flags)

    return start


def write_lines(path: Path, lines: list[Any]) -> None:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))


def records(path: Path) -> dict[Any, dict[str, Any]]:
    """The answers by id; the id of a line that cannot be read is its number in a tuple."""
    found = {}
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    for line in data.splitlines():
        record = json.loads(line)
        key = (record["line"],) if record["id"] is None else record["id"]
        assert key not in found
        found[key] = record
    return found


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "prompt": f"prompt {i}"} for i in range(count)]
