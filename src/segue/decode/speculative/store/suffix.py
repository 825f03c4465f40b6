"""A corpus under a suffix array: where a text occurs in it, and what followed, found by binary search.

Built by prefix doubling in numpy: suffixes are sorted by 1, 2, 4, ... tokens, each round only those that are still
tied, until a document ends or no two are alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segue.decode.speculative.store.base import SEPARATOR, Progress, Store
from segue.models.lm import LM


@dataclass(frozen=True)
class Suffix:
    """How a suffix store is built: it has nothing to choose."""

    kind: ClassVar[str] = "suffix"
    transient: ClassVar[tuple[str, ...]] = ()

    def read(self, lm: LM, documents: list[list[int]]) -> dict[str, NDArray[Any]]:
        """What is kept of documents besides their tokens."""
        return {}

    def finish(self, folder: Path, tokens: NDArray[np.int32], progress: Progress) -> dict[str, NDArray[Any]]:
        """The arrays that are made once all documents are read."""
        return {"suffixes": suffix_array(tokens, lambda done, of: progress("sorting", done, of))}


class SuffixStore(Store):
    """Finds the longest end of a text that occurs in the corpus."""

    kind = "suffix"

    @property
    def suffixes(self) -> NDArray[np.int64]:
        """Positions of the token stream in the order of what follows there."""
        return self.arrays["suffixes"]

    def occurrences(self, pattern: Sequence[int]) -> tuple[int, int]:
        """The stretch of `suffixes` whose texts begin with `pattern`; empty where it does not occur."""
        wanted, size = list(pattern), len(pattern)
        low = self._bound(wanted, size, 0, False)
        if low == len(self.suffixes) or self._text(low, size) != wanted:
            return low, low
        return low, self._bound(wanted, size, low, True)

    def longest(self, ids: Sequence[int], most: int, least: int = 1) -> tuple[int, int, int]:
        """Length of the longest end of `ids`, of `most` to `least` tokens, that occurs, and its stretch of `suffixes`;
        length 0 where none does."""
        # Where a text occurs its own ends occur too, so the length is found by bisection.
        low, high = least, min(most, len(ids))
        found = (0, 0, 0)
        while low <= high:
            size = (low + high) // 2
            begin, end = self.occurrences(ids[len(ids) - size :])
            if begin < end:
                found, low = (size, begin, end), size + 1
            else:
                high = size - 1
        return found

    def continuations(self, ids: Sequence[int], most: int, least: int, length: int, hits: int) -> NDArray[np.int32]:
        """(m, length) what followed the occurrences of the longest matching end of `ids`, ended by SEPARATOR. Of more
        than `hits` occurrences, such many are taken evenly, so that what is frequent stays frequent."""
        size, begin, end = self.longest(ids, most, least)
        if size == 0:
            return np.empty((0, length), dtype=np.int32)
        places = begin + (np.arange(min(end - begin, hits)) * (end - begin)) // min(end - begin, hits)
        return self.follow(np.asarray(self.suffixes[places], dtype=np.int64) + size, length)

    @cached_property
    def seconds(self) -> float:
        """What one look-up takes, measured once."""
        ids, took = self.tokens[:16].tolist(), []
        for _ in range(5):
            begin = time.perf_counter()
            self.continuations(ids, 16, 2, 10, 512)
            took.append(time.perf_counter() - begin)
        return min(took)

    def _text(self, index: int, size: int) -> list[int]:
        start = int(self.suffixes[index])
        text: list[int] = self.tokens[start : start + size].tolist()
        return text

    def _bound(self, wanted: list[int], size: int, low: int, behind: bool) -> int:
        """The first suffix that is not less than `wanted`, or, with `behind`, that is greater than all that begin with
        it."""
        high = len(self.suffixes)
        while low < high:
            middle = (low + high) // 2
            text = self._text(middle, size)
            if text < wanted or (behind and text == wanted):
                low = middle + 1
            else:
                high = middle
        return low


def suffix_array(tokens: NDArray[np.int32], progress: Callable[[int, int], None] | None = None) -> NDArray[np.int64]:
    """(n,) positions of a stream that ends with SEPARATOR, in the order of the texts from there to the end of their
    document. Separators come before all tokens, the earlier before the later, so no two texts are equal."""
    n = len(tokens)
    ends = tokens == SEPARATOR
    if n == 0 or not ends[-1]:
        raise ValueError("the token stream does not end with a separator")
    values = tokens.astype(np.int64) + ends.sum()
    values[ends] = np.arange(ends.sum())
    order = np.argsort(values, kind="stable")
    rank = np.empty(n, dtype=np.int64)  # of every position: the first slot of those it is tied with
    tied = _rank(rank, order, np.arange(n), values[order])
    size = 1  # tokens by which the order is right
    while len(tied):
        if progress is not None:
            progress(n - len(tied), n)
        here = order[tied]
        # A tied text has no separator among its first `size` tokens, so it goes on behind them.
        key = rank[here] * n + rank[here + size]
        turn = np.argsort(key, kind="stable")
        order[tied] = here[turn]
        tied = _rank(rank, order, tied, key[turn])
        size *= 2
    if progress is not None:
        progress(n, n)
    return order


def _rank(
    rank: NDArray[np.int64], order: NDArray[np.int64], slots: NDArray[np.int64], key: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rank what lies in these slots by their sorted keys; gives the slots that are still tied."""
    first = np.ones(len(key), dtype=bool)
    first[1:] = key[1:] != key[:-1]
    rank[order[slots]] = slots[np.maximum.accumulate(np.where(first, np.arange(len(key)), 0))]
    alone = first & np.append(first[1:], True)
    tied: NDArray[np.int64] = slots[~alone]
    return tied
