"""The best paths through a lattice of one choice per place, under a score that may look back along the path.

A* search: what is open is ranked by its score so far plus the best that the places ahead can give, which is never too
little, since a step's own score is at most 0. Paths therefore come out best first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

Column = Sequence[tuple[int, float]]  # tokens of a place with their log-probabilities
Step = Callable[[tuple[int, ...], int], float]  # path so far, token -> what it adds, at most 0


def best_paths(columns: Sequence[Column], step: Step, count: int) -> list[tuple[float, tuple[int, ...]]]:
    """The `count` best paths (all where there are fewer) with their scores, best first; of equal ones the one that the
    columns name first."""
    ahead = [0.0]
    for column in reversed(columns):
        ahead.append(ahead[-1] + max(logp for _, logp in column))
    ahead.reverse()  # at a place: the best that it and those behind it can give
    heap: list[tuple[float, tuple[int, ...], float, tuple[int, ...]]] = [(-ahead[0], (), 0.0, ())]
    found: list[tuple[float, tuple[int, ...]]] = []
    while heap and len(found) < count:
        _, ranks, score, path = heapq.heappop(heap)
        place = len(path)
        if place == len(columns):
            found.append((score, path))
            continue
        for rank, (token, logp) in enumerate(columns[place]):
            total = score + logp + step(path, token)
            heapq.heappush(heap, (-total - ahead[place + 1], (*ranks, rank), total, (*path, token)))
    return found
