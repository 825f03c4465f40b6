"""Packed trees of several sequences give the logits that each text has on its own: commits, rollbacks, forks, windows,
chunked prefill. The oracle is the untouched twin, one plain forward over each explicit text."""

from __future__ import annotations

import random

import pytest
import torch

from segue.data import DraftTree, Want
from segue.models.sequence import Sequence
from tests.models.families import CONFIGS, VOCAB, Twins, twins

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[(family, lean) for lean in (False, True) for family in CONFIGS], ids=str)
def pair(request: pytest.FixtureRequest) -> Twins:
    family, lean = request.param
    return twins(family, lean=lean)


def random_tree(rng: random.Random, size: int) -> DraftTree:
    tree = DraftTree.root(rng.randrange(3, VOCAB))
    for _ in range(size - 1):
        tree.add(rng.randrange(max(0, len(tree) - 4), len(tree)), rng.randrange(3, VOCAB))
    return tree


def tokens(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(size)]


def check(pair: Twins, sequences: list[Sequence], trees: list[DraftTree]) -> float:
    """Largest absolute difference between the packed logits and the oracle's."""
    scores = pair.lm.forward([(s, t, Want()) for s, t in zip(sequences, trees, strict=True)])
    worst = 0.0
    for sequence, tree, mine in zip(sequences, trees, scores, strict=True):
        for leaf in set(range(len(tree))) - set(tree.parents):
            path = tree.path(leaf)
            oracle = pair.logits(sequence.tokens + [tree.tokens[i] for i in path])[-len(path) :]
            worst = max(worst, float((mine.logits[path] - oracle).abs().max()))
    return worst


def deepest_path(tree: DraftTree) -> list[int]:
    return tree.path(max(range(len(tree)), key=lambda node: tree.depths[node]))


def test_packs_commits_rollbacks_and_forks(pair: Twins) -> None:
    rng = random.Random(1)
    sequences = [pair.lm.sequence() for _ in range(3)]
    prompts = [DraftTree.chain(tokens(rng, n)) for n in (1, 7, 19)]
    assert check(pair, sequences, prompts) < TOLERANCE
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.commit(list(range(len(prompt))))
    marks = [s.mark() for s in sequences]
    for size in (5, 9, 1):
        trees = [random_tree(rng, size + i) for i in range(3)]
        assert check(pair, sequences, trees) < TOLERANCE
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.commit(deepest_path(tree))
    sequences[1].rollback(marks[1])
    branch = sequences[2].fork()
    trees = [random_tree(rng, 6) for _ in range(4)]
    assert check(pair, [*sequences, branch], trees) < TOLERANCE


def test_chunked_prefill_and_windows(pair: Twins) -> None:
    rng = random.Random(2)
    text = tokens(rng, 45)
    sequence = pair.lm.sequence()
    for start in range(0, len(text), 11):
        chunk = DraftTree.chain(text[start : start + 11])
        assert check(pair, [sequence], [chunk]) < TOLERANCE
        sequence.commit(list(range(len(chunk))))
    assert sequence.tokens == text
    assert check(pair, [sequence], [random_tree(rng, 24)]) < TOLERANCE


def test_forks_share_a_long_prefix(pair: Twins) -> None:
    rng = random.Random(3)
    parent = pair.lm.sequence()
    pair.lm.forward([(parent, DraftTree.chain(tokens(rng, 100)), Want(logits="none"))])
    parent.commit(list(range(100)))
    family = [parent, parent.fork(), parent.fork()]
    assert len(parent.past.shared) == 1  # type: ignore[attr-defined]
    for size in (1, 7, 4):
        trees = [random_tree(rng, size) for _ in family]
        assert check(pair, family, trees) < TOLERANCE
        for sequence, tree in zip(family, trees, strict=True):
            sequence.commit(deepest_path(tree))
    family[0].rollback(type(family[0].mark())(70, None))
    other = pair.lm.sequence()
    assert check(pair, [*family, other], [random_tree(rng, 5) for _ in range(4)]) < TOLERANCE


def test_rows_wanted_only(pair: Twins) -> None:
    rng = random.Random(4)
    a, b = pair.lm.sequence(), pair.lm.sequence()
    tree, chain = random_tree(rng, 8), DraftTree.chain(tokens(rng, 6))
    last, some = pair.lm.forward([(a, chain, Want(logits="last")), (b, tree, Want(logits=(2, 5), topk=0))])
    assert last.logits.shape == (1, VOCAB)
    assert some.nodes == [2, 5]
    text = [tree.tokens[i] for i in tree.path(5)]
    torch.testing.assert_close(some.row(5), pair.logits(text)[-1], atol=1e-4, rtol=1e-4)
    (none,) = pair.lm.forward([(a, chain, Want(logits="none"))])
    assert none.logits.shape[0] == 0
