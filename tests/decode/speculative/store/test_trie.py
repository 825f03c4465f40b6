from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decode.speculative.store.trie import trie

row = st.lists(st.integers(0, 2), max_size=4).map(lambda r: r + [-1] * (4 - len(r)))


@given(st.lists(row, min_size=1, max_size=12), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_the_most_frequent_prefixes_are_kept(rows: list[list[int]], nodes: int) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for r in rows:
        text = tuple(t for t in r if t >= 0)
        counts.update(text[:i] for i in range(1, len(text) + 1))
    tree = trie(7, np.array(rows, dtype=np.int32), nodes)
    paths = [tuple(tree.tokens[i] for i in tree.path(node)[1:]) for node in range(1, len(tree))]
    assert tree.tokens[0] == 7
    assert len(set(paths)) == len(paths) == min(nodes, len(counts))
    kept = sorted((counts[path] for path in paths), reverse=True)
    assert kept == sorted(counts.values(), reverse=True)[:nodes]
    for node, path in zip(range(1, len(tree)), paths, strict=True):
        assert tree.score[node] == pytest.approx(counts[path] / (counts[path[:-1]] if path[:-1] else len(rows)))
    assert not any(tree.sampled)


def test_weights_decide_before_frequency() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6], [4, 5, 7]], dtype=np.int32)
    assert trie(0, rows, 3, weights=np.array([5.0, 1.0, 1.0])).tokens == [0, 1, 2, 3]
    assert trie(0, rows, 3).tokens == [0, 4, 5, 1]


def test_nothing_gives_the_root() -> None:
    assert trie(3, np.empty((0, 4), dtype=np.int32), 8).tokens == [3]
    assert trie(3, np.full((2, 4), -1, dtype=np.int32), 8).tokens == [3]
