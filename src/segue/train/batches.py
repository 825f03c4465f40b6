"""Token files on disk, and the order in which training reads them.

Every source is one file of uint16 tokens, documents in a seeded order with an end-of-text token after each.
The order of batches is a function of the seed and of how many tokens of each source were read so far,
so these counts are all that a resumed run needs to continue where it stopped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from segue.models.build import END_OF_TEXT
from segue.train.corpus import SOURCES
from segue.train.tokenizer import special_id, train_tokenizer

TOKENIZER_CHARACTERS = 24_000_000  # sample the tokenizer learns from, divided as the mixture is
HELDOUT_CHARACTERS = 120_000  # per source, for perplexity


def prepare(
    data: Path, folder: Path, mixture: Mapping[str, float], vocabulary: int, seed: int, tokenizer_file: Path | None
) -> Path:
    """Write tokenizer.json and the token files into `folder`; return the tokenizer file.

    What is complete already is kept. With `tokenizer_file` that tokenizer is used and none is trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, finished = folder / "tokenizer.json", folder / "index.json"
    if finished.exists():
        return kept
    if tokenizer_file is not None:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        if tokenizer.get_vocab_size() != vocabulary:
            raise ValueError(
                f"{tokenizer_file} has {tokenizer.get_vocab_size()} tokens but the recipe needs {vocabulary}; "
                "give the folder of a teacher trained with the same vocabulary"
            )
    else:
        tokenizer = train_tokenizer(_sample(data, mixture), vocabulary)
    tokenizer.save(str(kept))
    order = torch.Generator().manual_seed(seed)
    sizes: dict[str, dict[str, int]] = {}
    for name in mixture:
        documents = list(SOURCES[name].train(data))
        if not documents:
            raise ValueError(f"source {name!r} has no documents under {data}; check the data folder")
        shuffled = (documents[i] for i in torch.randperm(len(documents), generator=order).tolist())
        held, budget = [], HELDOUT_CHARACTERS
        for text in SOURCES[name].heldout(data):
            held.append(text[: min(budget, HELDOUT_CHARACTERS // 3)])
            budget -= len(held[-1])
            if budget <= 0:
                break
        sizes[name] = {
            "train": _write(tokenizer, shuffled, folder / f"{name}.train.bin"),
            "heldout": _write(tokenizer, held, folder / f"{name}.heldout.bin"),
            "heldout_bytes": sum(len(text.encode()) for text in held),
        }
    staging = finished.with_suffix(".new")
    staging.write_text(json.dumps(sizes, indent=1) + "\n")
    os.replace(staging, finished)
    return kept


def _sample(data: Path, mixture: Mapping[str, float]) -> Iterator[str]:
    for name, weight in mixture.items():
        left = int(weight * TOKENIZER_CHARACTERS)
        for text in SOURCES[name].train(data):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _write(tokenizer: Tokenizer, texts: Iterable[str], path: Path) -> int:
    end = special_id(tokenizer, END_OF_TEXT)
    count = 0
    with path.open("wb") as file:
        for text in texts:
            ids = np.array([*tokenizer.encode(text, add_special_tokens=False).ids, end], dtype=np.uint16)
            file.write(ids.tobytes())
            count += len(ids)
    return count


def read_tokens(folder: Path, name: str, part: str) -> npt.NDArray[Any]:
    """The tokens of one source, mapped from disk."""
    return np.memmap(folder / f"{name}.{part}.bin", dtype=np.uint16, mode="r")


class Reader:
    """Batches drawn from the sources in the proportions of the mixture."""

    def __init__(self, folder: Path, mixture: Mapping[str, float], seed: int) -> None:
        total = sum(mixture.values())
        self.shares = {name: weight / total for name, weight in mixture.items()}
        self.seed = seed
        self.taken = dict.fromkeys(mixture, 0)  # tokens read of each source: the whole state
        self.tokens = {name: read_tokens(folder, name, "train") for name in mixture}
        self._orders: dict[tuple[str, int, int], torch.Tensor] = {}

    def batch(self, sequences: int, length: int) -> torch.Tensor:
        """The next `sequences` windows of `length` tokens and one more, (B, T + 1)."""
        windows = []
        for _ in range(sequences):
            drawn = sum(self.taken.values()) + length
            name = max(self.shares, key=lambda source: self.shares[source] * drawn - self.taken[source])
            windows.append(self._window(name, length))
            self.taken[name] += length
        return torch.from_numpy(np.stack(windows))

    def _window(self, name: str, length: int) -> npt.NDArray[Any]:
        tokens = self.tokens[name]
        count = (len(tokens) - 1) // length
        if count == 0:
            return np.resize(tokens, length + 1).astype(np.int64)
        epoch, place = divmod(self.taken[name] // length, count)
        start = int(self._order(name, length, count, epoch)[place]) * length
        return tokens[start : start + length + 1].astype(np.int64)

    def _order(self, name: str, length: int, count: int, epoch: int) -> torch.Tensor:
        key = (name, length, epoch)
        if key not in self._orders:
            seed = self.seed + 1_000_003 * epoch + 7_919 * list(self.shares).index(name)
            self._orders[key] = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return self._orders[key]

    def epochs(self) -> dict[str, float]:
        """How often each source was read so far."""
        return {name: taken / len(self.tokens[name]) for name, taken in self.taken.items()}


def sequences_per(tokens: int, length: int) -> int:
    """How many sequences of `length` make about `tokens` tokens, at least one."""
    return max(1, math.floor(tokens / length))
