"""Corpus figures against sacrebleu's own, and against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from segue.bench.bootstrap import draws, interval
from segue.bench.measures import Corpus, Ratio, distinct, mean, oracle

TEXTS = ["the cat sat on the mat today", "a small dog", "it is raining again now here", "", "we go home now , do we ?"]
REFERENCES = [
    "the cat sat on a mat today",
    "the dog",
    "it is raining again in here now",
    "yes",
    "We go home now, right?",
]


@pytest.mark.parametrize(("metric", "own"), [("bleu", BLEU), ("chrf", CHRF)])
def test_every_draw_has_sacrebleus_corpus_score(metric: str, own: type) -> None:
    weights = draws(len(TEXTS))[:40]
    found = Corpus(metric, TEXTS, REFERENCES)(weights)
    for row, score in zip(weights.astype(int), found, strict=True):
        places = [place for place, count in enumerate(row) for _ in range(count)]
        expected = own().corpus_score([TEXTS[i] for i in places], [[REFERENCES[i] for i in places]]).score
        assert score == pytest.approx(expected)


def test_bleu_by_hand() -> None:
    """Of "a b c d e" against "a b c d f": 4 of 5 words, 3 of 4 pairs, 2 of 3 and 1 of 2; no brevity penalty."""
    (score,) = Corpus("bleu", ["a b c d e"], ["a b c d f"])(np.ones((1, 1)))
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_the_oracle_takes_the_nearest_of_every_list() -> None:
    lists = [["the dog", REFERENCES[0], TEXTS[0]], ["a dog", "a cat"]]
    assert oracle(lists, REFERENCES[:2]) == [REFERENCES[0], "a dog"]
    chosen = Corpus("bleu", oracle(lists, REFERENCES[:2]), REFERENCES[:2])(np.ones((1, 2)))
    first = Corpus("bleu", [texts[0] for texts in lists], REFERENCES[:2])(np.ones((1, 2)))
    assert chosen > first


def test_distinct_pairs_by_hand() -> None:
    assert distinct(["a b c", "a b d"]) == (3, 6)  # ab, bc, bd of six words
    assert distinct(["a b a b"], n=1) == (2, 4)
    assert distinct(["one", ""]) == (0, 1)


def test_ratios_are_of_sums_and_means_are_of_prompts() -> None:
    weights = np.array([[1.0, 1.0], [2.0, 0.0]])
    assert Ratio([1.0, 3.0], [2.0, 2.0], 100.0)(weights).tolist() == [100.0, 50.0]
    assert mean([1.0, 3.0])(weights).tolist() == [2.0, 1.0]


def test_better_translations_are_told_apart() -> None:
    source = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(30)]
    references = [" ".join(source.choice(vocabulary, 12)) for _ in range(40)]

    def damaged(share: float) -> list[str]:
        return [" ".join(w if source.random() > share else "x" for w in r.split()) for r in references]

    good, bad = (Corpus("bleu", damaged(share), references) for share in (0.1, 0.3))
    weights = draws(40)
    difference, low, high = interval(good(weights) - bad(weights))
    assert 0 < low < difference < high
