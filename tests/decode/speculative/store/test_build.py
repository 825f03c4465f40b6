"""Builds that are killed, stores that are damaged, and stores of somebody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue.decode.speculative.store.base import Store, StoreError, opened, retired_of, staging_of
from segue.decode.speculative.store.build import Kind, build
from segue.decode.speculative.store.dense import Dense, DenseStore
from segue.decode.speculative.store.suffix import Suffix, SuffixStore
from segue.laws.worlds import network_world, toy_world
from segue.models.lm import LM

TEXTS = [[(7 * i + j * j) % 96 for j in range(20 + i)] for i in range(12)]
KINDS: list[tuple[Kind, type[Store]]] = [(Suffix(), SuffixStore), (Dense(dims=8, search="ivf"), DenseStore)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


def make(folder: Path, lm: LM, kind: Kind, **options: Any) -> Path:
    return build(folder, kind, lm, options.pop("texts", TEXTS), list, shard=3, corpus="twelve", **options)


def contents(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / "meta.json").read_text())
    return {name: facts["sha256"] for name, facts in meta["files"].items()}


class Killed(BaseException):
    pass


def killer(stage: str, done: int) -> Callable[[str, int, int], None]:
    def progress(now: str, at: int, of: int) -> None:
        if now == stage and at >= done:
            raise Killed

    return progress


@pytest.mark.parametrize(("kind", "cls"), KINDS)
def test_a_killed_build_goes_on_where_it_was(kind: Kind, cls: type[Store], lm: LM, tmp_path: Path) -> None:
    whole = contents(make(tmp_path / "whole", lm, kind))
    folder = tmp_path / "s"
    places = [("reading", 0), ("reading", 6), ("reading", 12), *([("indexing", 0)] if cls is DenseStore else [])]
    read: list[int] = []
    for stage, done in places:
        with pytest.raises(Killed):
            make(folder, lm, kind, resume=True, progress=killer(stage, done))
        assert not folder.exists()
        with pytest.raises(StoreError, match="is not finished"):
            cls.open(folder)

    def reads(texts: Any) -> list[list[int]]:
        read.append(len(texts))
        return list(texts)

    build(folder, kind, lm, TEXTS, reads, shard=3, corpus="twelve", resume=True)
    assert read == []  # every document had been read before
    assert contents(folder) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]


@pytest.mark.parametrize("damage", ["a line half written", "rows behind the journal", "both"])
def test_what_was_half_written_is_read_again(damage: str, lm: LM, tmp_path: Path) -> None:
    kind = Dense(dims=8)
    whole = contents(make(tmp_path / "whole", lm, kind))
    folder = tmp_path / "s"
    with pytest.raises(Killed):
        make(folder, lm, kind, progress=killer("reading", 6))
    staging = staging_of(folder)
    journal = staging / "journal.jsonl"
    assert len(journal.read_bytes().splitlines()) == 2
    if damage != "rows behind the journal":
        line = journal.read_bytes().splitlines()[-1]
        with journal.open("ab") as file:
            file.write(line[: len(line) // 2])
    if damage != "a line half written":
        for name in ("tokens", "states"):
            with (staging / f"{name}.bin").open("ab") as file:
                file.write(b"half a row")
    make(folder, lm, kind, resume=True)
    assert contents(folder) == whole


def test_what_is_there_is_kept_until_the_new_store_is_whole(lm: LM, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", lm, Suffix())
    before = contents(folder)
    old = SuffixStore.open(folder)
    with pytest.raises(StoreError, match="--force replaces it"):
        make(folder, lm, Suffix(), texts=TEXTS[:5])
    with pytest.raises(StoreError, match="document 2 has token id 96, outside the vocabulary of tiny-llama-0"):
        make(folder, lm, Suffix(), texts=[[1], [96]], force=True)
    with pytest.raises(Killed):
        make(folder, lm, Suffix(), texts=TEXTS[:5], force=True, progress=killer("sorting", 0))
    assert contents(folder) == before
    with pytest.raises(StoreError, match="an unfinished build with another documents"):
        make(folder, lm, Suffix(), texts=TEXTS[:4], resume=True)
    make(folder, lm, Suffix(), texts=TEXTS[:5], resume=True)
    assert contents(folder) != before
    assert len(SuffixStore.open(folder).tokens) == sum(map(len, TEXTS[:5])) + 5
    assert len(old.tokens) == sum(map(len, TEXTS)) + 12  # who has the old one open still reads it
    assert list(tmp_path.iterdir()) == [folder]


def test_a_build_killed_between_two_renames_loses_nothing(lm: LM, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", lm, Suffix())
    folder.rename(retired_of(folder))
    with pytest.raises(StoreError, match=r"was being replaced: rename .*s\.old"):
        SuffixStore.open(folder)
    with pytest.raises(StoreError, match="--force replaces it"):
        make(folder, lm, Suffix())
    assert SuffixStore.open(folder).meta["documents"] == 12


def test_an_unfinished_build_is_not_touched_unasked(lm: LM, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(Killed):
        make(folder, lm, Suffix(), progress=killer("reading", 6))
    with pytest.raises(StoreError, match="--resume goes on with it, --force starts afresh"):
        make(folder, lm, Suffix())
    with pytest.raises(StoreError, match="another kind"):
        make(folder, lm, Dense(), resume=True)
    with pytest.raises(StoreError, match="another model"):
        build(folder, Suffix(), toy_world(96).lm, TEXTS, list, corpus="twelve", resume=True)
    make(folder, lm, Suffix(), texts=TEXTS[:2], force=True)
    assert SuffixStore.open(folder).meta["documents"] == 2


def test_two_builds_at_once_are_one_too_many(lm: LM, tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def again(stage: str, done: int, of: int) -> None:
        if done == 6 and stage == "reading":
            with pytest.raises(StoreError, match="is being built by another process"):
                make(folder, lm, Suffix(), force=True)

    make(folder, lm, Suffix(), progress=again)
    assert SuffixStore.open(folder).meta["documents"] == 12


def test_a_folder_of_something_else_is_never_replaced(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is no datastore: name another folder"):
        make(tmp_path / "mine", lm, Suffix(), force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(StoreError, match="there is no folder"):
        make(tmp_path / "no" / "s", lm, Suffix())
    with pytest.raises(StoreError, match="holds no tokens in 2 documents"):
        make(tmp_path / "s", lm, Suffix(), texts=[[], []])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "tokens.bin"), "the contents of tokens.bin have changed"),
        (lambda f: flip(f / "index.faiss"), "the contents of index.faiss have changed"),
        (lambda f: (f / "places.bin").write_bytes(b""), "places.bin has 0 bytes instead of"),
        (lambda f: (f / "mean.bin").unlink(), "mean.bin is missing"),
        (lambda f: (f / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda f: (f / "meta.json").write_text("[]"), "meta.json is damaged"),
        (lambda f: edit(f / "meta.json", arrays={}), "meta.json is damaged"),
        (lambda f: edit(f / "meta.json", format=99), "has format 99, and this version of Segue reads 1"),
        (lambda f: (f / "meta.json").unlink(), "is not a datastore"),
    ],
)
def test_a_damaged_store_is_refused(damage: Callable[[Path], None], message: str, lm: LM, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", lm, Dense(dims=8, search="ivf"))
    assert opened(str(folder), DenseStore).lacks(lm) == ""
    damage(folder)
    with pytest.raises(StoreError, match=message):
        DenseStore.open(folder)


def test_stores_are_opened_once_and_again_when_they_change(lm: LM, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", lm, Suffix())
    first = opened(str(folder), SuffixStore)
    assert opened(str(folder), SuffixStore) is first
    assert isinstance(first.tokens, np.memmap)
    make(folder, lm, Suffix(), texts=TEXTS[:3], force=True)
    assert opened(str(folder), SuffixStore).meta["documents"] == 3
    with pytest.raises(StoreError, match="is a suffix store, and a dense store is needed"):
        opened(str(folder), DenseStore)
    with pytest.raises(StoreError, match=r"does not exist: `segue index build CORPUS -o"):
        opened(str(tmp_path / "none"), SuffixStore)


def test_another_tokenizer_is_refused_with_both_names(lm: LM, tmp_path: Path) -> None:
    store = SuffixStore.open(make(tmp_path / "s", lm, Suffix()))
    assert store.lacks(lm) == ""
    assert store.lacks(network_world("gpt2", 5).lm) == ""  # the same ids, another network
    with pytest.raises(StoreError, match="was built for tiny-llama-0 and toy-4-2-0 has another tokenizer"):
        store.check(toy_world(4).lm)
