"""Clusters of texts: against groups that can be seen."""

from __future__ import annotations

import sys

import pytest

from segue.choose.parts.cluster import clustered

SAID = ["so 3 + 4 = 7", "so 3 + 4 = 7 apples", "the cat sleeps on a mat", "a cat sleeps on the mat", "3 + 4 = 7"]


def groups(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, label in enumerate(labels) if label == group) for group in labels}


def test_what_says_the_same_is_together() -> None:
    assert groups(clustered(SAID, 2)) == {frozenset({0, 1, 4}), frozenset({2, 3})}


def test_numbers_of_one_character_are_words() -> None:
    assert groups(clustered(["= 7", "= 8", "= 7"], 3)) == {frozenset({0, 2}), frozenset({1})}


def test_it_is_always_the_same() -> None:
    assert clustered(SAID, 3) == clustered(list(SAID), 3)


@pytest.mark.parametrize(
    ("texts", "most"),
    [([], 3), (["a"], 3), (["a", "b"], 1), (["", " "], 2), (["same", "same"], 2), (["a b", "b a"], 2)],
)
def test_what_cannot_be_divided_is_one_cluster(texts: list[str], most: int) -> None:
    assert clustered(texts, most) == [0] * len(texts)


def test_no_more_clusters_than_different_texts() -> None:
    assert groups(clustered(["a", "b", "a", ""], 4)) == {frozenset({0, 2}), frozenset({1}), frozenset({3})}


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ValueError, match=r"scikit-learn: pip install 'segue\[choose\]'"):
        clustered(["a", "b"], 2)
