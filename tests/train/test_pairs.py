from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.train.pairs import PairReader, heldout_pairs, kin, news_pairs, training_pairs

LINES = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=9), min_size=1, max_size=40)


def related(left: str, right: str) -> bool:
    return bool(kin(left) & kin(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Tom ist oben.", "tom ist oben"),
        ("Ist Tom oben?", "Tom ist oben."),
        ("Das war's.", "Das wars!"),
        ("Er kam gestern.", "Er kamm gestern."),
        ("Er kam gestern.", "Er kan gestern."),
        ("Übung", "U\u0308bung"),
    ],
)
def test_near_duplicates_are_known(left: str, right: str) -> None:
    assert related(left, right)
    assert related(right, left)


@pytest.mark.parametrize(
    ("left", "right"), [("Tom ist oben.", "Tom ist unten."), ("Er kam.", "Sie kam."), ("Ja.", "Nein.")]
)
def test_other_sentences_are_not_near_duplicates(left: str, right: str) -> None:
    assert not related(left, right)


def test_no_training_sentence_is_near_a_heldout_one(bitext: Path) -> None:
    train = training_pairs(bitext)
    held = [*heldout_pairs(bitext, "valid"), *heldout_pairs(bitext, "test")]
    assert len(train) == 32 - len(held)  # all combinations but the held-out ones, and no twin
    assert not {"A twin."} & {pair.target for pair in train}
    assert not any(related(pair.source, other.source) for pair in train for other in held)


def test_a_german_sentence_is_held_out_once(bitext: Path) -> None:
    sources = Counter(pair.source for pair in heldout_pairs(bitext, "test"))
    assert set(sources.values()) == {1}
    assert "Tom did buy milk." not in [pair.target for pair in heldout_pairs(bitext, "test")]


def test_news_may_be_missing(bitext: Path, tmp_path: Path) -> None:
    assert [pair.target for pair in news_pairs(bitext)] == ["The milk is old."]
    assert news_pairs(tmp_path) == []


def test_missing_pairs_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tatoeba_de_en/valid.*point data at"):
        training_pairs(tmp_path)


@given(LINES, st.integers(1, 30), st.integers(0, 5))
def test_an_epoch_reads_each_pair_once_in_small_batches(lines: list[list[int]], micro: int, seed: int) -> None:
    reader = PairReader(lines, [line[::-1] for line in lines], micro, padding=1, seed=seed)
    read: Counter[tuple[int, ...]] = Counter()
    while reader.place["epoch"] == 0:
        batch = reader.batch()
        assert batch.rows == 1 or batch.target.numel() <= micro
        assert batch.source.shape == batch.seen.shape
        for source, seen, target in zip(batch.source, batch.seen, batch.target, strict=True):
            line = source[seen.bool()].tolist()
            assert target[: len(line)].tolist() == line[::-1]
            assert set(target[len(line) :].tolist()) <= {1}
            read[tuple(line)] += 1
    assert read == Counter(map(tuple, lines))
    assert reader.epochs() == 1


@given(LINES, st.integers(0, 20))
def test_the_place_is_the_whole_state(lines: list[list[int]], steps: int) -> None:
    one, other = (PairReader(lines, lines, 20, padding=1, seed=3) for _ in range(2))
    for _ in range(steps):
        one.batch()
    other.place = dict(one.place)
    for _ in range(3):
        left, right = one.batch(), other.batch()
        assert left.source.tolist() == right.source.tolist()
        assert left.target.tolist() == right.target.tolist()
