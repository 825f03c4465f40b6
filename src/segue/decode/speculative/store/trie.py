"""Retrieved continuations as a draft tree: what they share becomes shared nodes, the most frequent ones are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segue.data import DraftTree


def trie(root: int, rows: NDArray[np.int32], nodes: int, source: str = "") -> DraftTree:
    """The `nodes` most frequent prefixes of continuations (m, L), each ended by negative ids.

    A node's score is its relative frequency among the continuations that reach its parent, so the product down to it is
    its share of all. Equally frequent ones: the shallower first.
    """
    tree = DraftTree.root(root)
    if rows.size == 0 or nodes < 1:
        return tree
    rows = rows[np.lexsort(rows.T[::-1])]
    # Sorted, the continuations that share a prefix lie together: a node is a run of rows.
    begins = np.ones(rows.shape, dtype=bool)
    begins[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    first, level = np.nonzero(begins & (rows >= 0))
    width = rows.shape[0]
    ends = np.full(rows.shape, width)  # where the run that begins here ends
    for depth in range(rows.shape[1]):
        starts = np.flatnonzero(begins[:, depth])
        ends[starts, depth] = np.append(starts[1:], width)
    count = ends[first, level] - first
    chosen = np.lexsort((first, level, -count))[:nodes]
    # A parent is at least as frequent as its child and shallower, so it comes first.
    at = np.zeros(rows.shape, dtype=np.int64)  # (row, depth) -> tree node
    weight = [width]  # of every tree node
    for i in chosen.tolist():
        row, depth, mine = int(first[i]), int(level[i]), int(count[i])
        parent = int(at[row, depth - 1]) if depth else 0
        at[row : row + mine, depth] = tree.add(
            parent, int(rows[row, depth]), score=mine / weight[parent], source=source
        )
        weight.append(mine)
    return tree
