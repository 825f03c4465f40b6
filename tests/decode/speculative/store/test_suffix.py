"""The suffix array against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decode.speculative.store.suffix import SuffixStore, suffix_array

documents = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=6)


def stream(texts: list[list[int]]) -> np.ndarray:
    return np.array([token for text in texts for token in [*text, -1]], dtype=np.int32)


def store(texts: list[list[int]]) -> SuffixStore:
    tokens = stream(texts)
    return SuffixStore(Path("nowhere"), {}, {"tokens": tokens, "suffixes": suffix_array(tokens)})


@given(documents)
@settings(max_examples=150, deadline=None)
def test_suffixes_are_in_order(texts: list[list[int]]) -> None:
    tokens = stream(texts)
    n = len(tokens)
    # Separators are told apart by where they are, so that nothing behind one decides.
    unique = [(1, t) if t >= 0 else (0, i) for i, t in enumerate(tokens.tolist())]
    ends = [next(j for j in range(i, n) if tokens[j] == -1) for i in range(n)]
    assert suffix_array(tokens).tolist() == sorted(range(n), key=lambda i: unique[i : ends[i] + 1])


@given(documents, st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_the_longest_end_is_found_with_all_that_followed(
    texts: list[list[int]], ids: list[int], most: int, least: int
) -> None:
    def following(size: int) -> list[list[int]]:
        wanted = ids[len(ids) - size :]
        found = []
        for text in texts:
            for i in range(len(text) - size + 1):
                if text[i : i + size] == wanted:
                    found.append((text[i + size :] + [-1] * 3)[:3])
        return sorted(found)

    sizes = [size for size in range(min(most, len(ids)), least - 1, -1) if following(size)]
    rows = store(texts).continuations(ids, most, least, 3, hits=1000)
    assert sorted(rows.tolist()) == (following(sizes[0]) if sizes else [])


def test_few_of_many_occurrences_are_taken_evenly() -> None:
    """Of a hundred occurrences nine in ten go on with 5: so do nine in ten of those that are read."""
    rows = store([[1, 2, 5]] * 90 + [[1, 2, 6]] * 10).continuations([1, 2], 4, 1, 2, hits=20)
    assert rows.shape == (20, 2)
    assert rows[:, 0].tolist() == [5] * 18 + [6] * 2
    assert rows[:, 1].tolist() == [-1] * 20


def test_a_stream_of_some_hundred_thousand_tokens_with_long_repeats() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 500, 60_000)
    tokens = np.concatenate([text, [-1], text[:50_000], [-1], rng.integers(0, 3, 40_000), [-1]]).astype(np.int32)
    seen: list[tuple[int, int]] = []
    order = suffix_array(tokens, lambda done, of: seen.append((done, of)))
    assert np.array_equal(np.sort(order), np.arange(len(tokens)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(tokens), len(tokens))
    for slot in rng.choice(len(order) - 1, 500, replace=False):
        a, b = tokens[order[slot] :][:80].tolist(), tokens[order[slot + 1] :][:80].tolist()
        cut = [x[: x.index(-1)] if -1 in x else x for x in (a, b)]
        assert cut[0] <= cut[1]


def test_a_stream_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end with a separator"):
        suffix_array(np.array([1, 2], dtype=np.int32))
    assert suffix_array(np.array([-1], dtype=np.int32)).tolist() == [0]
