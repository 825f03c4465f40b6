"""Tables of trigrams: counted rightly, mapped, whole or refused, whoever is killed meanwhile."""

from __future__ import annotations

import copy
import mmap
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import segue
from segue.decode.speculative.store import trigram
from segue.decode.speculative.store.base import StoreError, identity
from segue.decode.speculative.store.trigram import SUCCESSORS, Pair, build, open_table
from segue.models.toy import ToyLM


def made(documents: Iterable[list[int]], path: Path, vocab_size: int) -> Path:
    build(documents, path, identity(ToyLM(vocab_size)))
    return path


def texts(seed: int, count: int = 60, size: int = 30) -> list[list[int]]:
    rng = random.Random(seed)
    # Squared, so that some trigrams are frequent and rows have ties and long tails.
    return [[int(size * rng.random() ** 3) for _ in range(rng.randrange(90))] for _ in range(count)]


def counted(corpus: list[list[int]]) -> dict[Pair, dict[int, float]]:
    """The oracle: dictionaries, one trigram at a time."""
    rows: dict[Pair, Counter[int]] = defaultdict(Counter)
    for text in corpus:
        for i in range(2, len(text)):
            rows[text[i - 2], text[i - 1]][text[i]] += 1
    table = {}
    for pair, row in rows.items():
        best = sorted(row.items(), key=lambda item: (-item[1], item[0]))[:SUCCESSORS]
        table[pair] = {token: count / sum(row.values()) for token, count in best}
    return table


@pytest.mark.parametrize("buffer", [1 << 20, 50, 7])
def test_a_table_is_what_dictionaries_count(buffer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigram, "BUFFER", buffer)  # parts are counted apart and summed
    corpus = texts(1)
    expected = counted(corpus)
    shown: list[int] = []
    file = tmp_path / "t"
    pairs = build(corpus, file, identity(ToyLM(30)), progress=shown.append)
    table = open_table(file)
    assert pairs == len(table) == len(expected) > 100
    assert max(map(len, expected.values())) == SUCCESSORS
    for a in range(30):
        for b in range(30):
            row = table.get((a, b), {})
            assert row == pytest.approx(expected.get((a, b), {}))
            assert list(row) == list(expected.get((a, b), {}))
    assert shown == list(range(1, 61))
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    file = made(([i, i + 1] if i % 2 else [i, i, i] for i in range(4)), tmp_path / "t", 6)
    arrays = load_file(file)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "keys": [0, 14], "starts": [0, 1, 2], "tokens": [0, 2], "p": [1.0, 1.0],
    }  # fmt: skip


def test_a_table_is_mapped_once_and_anew_when_it_was_made_anew(tmp_path: Path) -> None:
    file = made([[0, 1, 2]], tmp_path / "t", 4)
    first = open_table(file)
    assert open_table(str(file)) is first is copy.deepcopy(first)
    base = first.tokens
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base.base, mmap.mmap)
    assert not first.tokens.flags.owndata
    assert not first.tokens.flags.writeable
    made([[0, 1, 3]], file, 4)
    assert open_table(file).get((0, 1), {}) == {3: 1.0}
    assert first.get((0, 1), {}) == {2: 1.0}  # the old file lives as long as somebody reads it


KILLED = """
import os, signal, sys
from segue.decode.speculative.store import trigram
from segue.decode.speculative.store.base import identity
from segue.models.toy import ToyLM
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
setattr(trigram.os, sys.argv[2], die)
trigram.build([[3, 2, 1]] * 1000, sys.argv[1], identity(ToyLM(4)))
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_who_is_killed_while_saving_leaves_the_old_table(moment: str, tmp_path: Path) -> None:
    file = made([[0, 1, 2]], tmp_path / "t", 4)
    before = file.read_bytes()
    environment = os.environ | {"PYTHONPATH": str(Path(segue.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), moment], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    assert open_table(file).get((0, 1), {}) == {2: 1.0}
    made([[0, 1, 3]], file, 4)  # what the other left is in nobody's way
    assert open_table(file).get((0, 1), {}) == {3: 1.0}


def test_a_build_that_fails_leaves_the_old_table(tmp_path: Path) -> None:
    file = made([[0, 1, 2]], tmp_path / "t", 4)
    with pytest.raises(StoreError, match="document 2 has token id 4, outside the vocabulary of 4 tokens"):
        made([[1, 2, 3], [0, 4, 1]], file, 4)
    assert open_table(file).get((0, 1), {}) == {2: 1.0}
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "format", "a bit"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    file = made([[0, 1, 2, 3]], tmp_path / "t", 4)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:-3],
            "empty": b"",
            "other": save({"x": np.zeros(3)}),
            "format": whole.replace(b"segue trigrams 2", b"segue trigrams 9"),
            "a bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        }[damage]
    )
    with pytest.raises(StoreError, match="is no table of trigrams, or damaged"):
        open_table(file)


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the corpus has no three tokens in a row"):
        made([[0, 1], []], tmp_path / "t", 4)
    with pytest.raises(StoreError, match="there is no folder"):
        made([[0, 1, 2]], tmp_path / "no" / "t", 4)
    with pytest.raises(StoreError, match="is a folder, and a table is a file"):
        made([[0, 1, 2]], tmp_path, 4)
    with pytest.raises(StoreError, match=r"a vocabulary of 2,097,152 tokens has no table"):
        build([[0, 1, 2]], tmp_path / "t", {"vocab_size": 2**21})
    assert not list(tmp_path.iterdir())
