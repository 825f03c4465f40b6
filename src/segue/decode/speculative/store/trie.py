"""Retrieved continuations as a draft tree: what they share becomes shared nodes, those of most weight are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segue.data import DraftTree


def trie(
    root: int, rows: NDArray[np.int32], nodes: int, source: str = "", weights: NDArray[np.float64] | None = None
) -> DraftTree:
    """The `nodes` weightiest prefixes of continuations (m, L), each ended by negative ids. `weights` (m,): of every
    continuation, one each if left out, so that a prefix weighs what it is frequent.

    A node's score is its share of its parent's weight, so the product down to it is its share of all. Of equal ones the
    shallower first.
    """
    tree = DraftTree.root(root)
    if rows.size == 0 or nodes < 1:
        return tree
    order = np.lexsort(rows.T[::-1])
    rows = rows[order]
    m, length = rows.shape
    total = np.concatenate([[0.0], np.cumsum(np.ones(m) if weights is None else weights[order])])
    # Sorted, the continuations that share a prefix lie together: a node is a run of rows.
    begins = np.ones(rows.shape, dtype=bool)
    begins[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    ends = np.full(rows.shape, m)  # where the run that begins here ends
    for depth in range(length):
        starts = np.flatnonzero(begins[:, depth])
        ends[starts, depth] = np.append(starts[1:], m)
    first, level = np.nonzero(begins & (rows >= 0))
    last = ends[first, level]
    mass = total[last] - total[first]
    # A parent weighs at least as much as its child and is shallower, so it comes first; rounding must not part them.
    chosen = np.lexsort((first, level, -np.round(mass / total[-1], 9)))[:nodes]
    at = np.zeros(rows.shape, dtype=np.int64)  # (row, depth) -> tree node
    held = [total[-1]]  # weight of every tree node
    for i in chosen.tolist():
        row, depth = int(first[i]), int(level[i])
        parent = int(at[row, depth - 1]) if depth else 0
        share = min(float(mass[i] / held[parent]), 1.0)
        at[row : last[i], depth] = tree.add(parent, int(rows[row, depth]), score=share, source=source)
        held.append(mass[i])
    return tree
