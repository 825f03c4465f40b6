"""Commit, rollback and fork keep tokens and rows together, and memory is shared and freed as promised."""

from __future__ import annotations

import random

import pytest
import torch

from segue.data import DraftTree, Want
from segue.models.sequence import Mark, Sequence
from segue.models.transformers.arena import SHORTEST
from segue.models.transformers.kv import KVCache
from tests.models.families import Twins, twins
from tests.models.transformers.test_packed_trees import tokens


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("llama")


def filled(pair: Twins, text: list[int]) -> Sequence:
    sequence = pair.lm.sequence()
    pair.lm.forward([(sequence, DraftTree.chain(text), Want(logits="none"))])
    sequence.commit(list(range(len(text))))
    return sequence


def rows(sequence: Sequence) -> torch.Tensor:
    """All committed keys of layer 0 (G, S, d), across pieces."""
    cache = sequence.past
    assert isinstance(cache, KVCache)
    parts = [cache.piece(piece, 0)[0] for piece in cache.shared]
    if len(sequence) > cache.base:
        parts.append(cache.private(0, len(sequence) - cache.base)[0])
    return torch.cat(parts, dim=2)[0]


def test_committed_rows_equal_a_fresh_prefill(pair: Twins) -> None:
    rng = random.Random(1)
    sequence = filled(pair, tokens(rng, 30))
    for _ in range(12):
        tree = DraftTree.root(rng.randrange(3, 90))
        for _ in range(9):
            tree.add(rng.randrange(len(tree)), rng.randrange(3, 90))
        pair.lm.forward([(sequence, tree, Want())])
        sequence.commit(tree.path(rng.randrange(len(tree))))
        if rng.random() < 0.3:
            sequence.rollback(Mark(rng.randrange(1, len(sequence)), None))
        if rng.random() < 0.5:
            sequence = sequence.fork()
        torch.testing.assert_close(rows(sequence), rows(filled(pair, sequence.tokens)), atol=1e-5, rtol=1e-5)


def test_growth_is_by_doubling(pair: Twins) -> None:
    sequence = pair.lm.sequence()
    cache = sequence.past
    assert isinstance(cache, KVCache)
    sizes = set()
    for token in range(200):
        pair.lm.forward([(sequence, DraftTree.root(token % 90), Want(logits="none"))])
        sequence.commit([0])
        sizes.add(cache.private_bytes // pair.lm.bytes_per_row)
    assert sizes == {SHORTEST, 2 * SHORTEST, 4 * SHORTEST}


def test_forks_share_the_long_part_and_keep_tails_apart(pair: Twins) -> None:
    parent = filled(pair, [7] * 200)
    forks = [parent.fork() for _ in range(10)]
    past = [f.past for f in forks]
    assert all(isinstance(p, KVCache) and p.private_bytes == 0 for p in past)
    assert len({id(p.shared[0].slot) for p in past}) == 1  # type: ignore[attr-defined]
    for i, fork in enumerate(forks):
        pair.lm.forward([(fork, DraftTree.root(10 + i), Want(logits="none"))])
        fork.commit([0])
    assert [f.tokens[-1] for f in forks] == list(range(10, 20))
    assert len(parent) == 200


def test_many_generations_of_forks_stay_few_pieces(pair: Twins) -> None:
    sequence = filled(pair, [5] * 3)
    for step in range(240):
        sequence = sequence.fork()
        pair.lm.forward([(sequence, DraftTree.root(step % 90), Want(logits="none"))])
        sequence.commit([0])
    cache = sequence.past
    assert isinstance(cache, KVCache)
    assert len(cache.shared) <= 6
    torch.testing.assert_close(rows(sequence), rows(filled(pair, sequence.tokens)), atol=1e-5, rtol=1e-5)


def test_misuse_is_refused(pair: Twins) -> None:
    sequence = filled(pair, [3, 4, 5])
    with pytest.raises(ValueError, match="nothing to commit"):
        sequence.commit([0])
    with pytest.raises(ValueError, match="cannot roll back to length 9"):
        sequence.rollback(Mark(9, None))
    tree = DraftTree.root(6)
    tree.add(0, 7)
    tree.add(0, 8, scored_only=True)
    for path in ([0, 2], [1], [0, 1, 2]):
        pair.lm.forward([(sequence, tree, Want())])
        with pytest.raises(ValueError, match="not a path"):
            sequence.commit(path)
    sequence.commit([0, 1], pending=9)
    assert (sequence.tokens, sequence.pending) == ([3, 4, 5, 6, 7], 9)


def test_release_frees_and_the_sequence_starts_again(pair: Twins) -> None:
    sequence = filled(pair, [3] * 100)
    sequence.release()
    assert len(sequence) == 0
    assert sequence.past.private_bytes == 0  # type: ignore[attr-defined]
    (scores,) = pair.lm.forward([(sequence, DraftTree.chain([5, 6]), Want())])
    torch.testing.assert_close(scores.logits, pair.logits([5, 6]), atol=1e-5, rtol=1e-4)


def test_context_limit(pair: Twins) -> None:
    sequence = filled(pair, [3] * 256)
    with pytest.raises(ValueError, match="is full"):
        pair.lm.forward([(sequence, DraftTree.root(4), Want())])
