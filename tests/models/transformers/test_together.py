"""Many sequences in one attention call: the logits that each text has on its own, whoever lies beside it. The oracle is
the untouched twin, one plain forward over each explicit text."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from segue.data import Want
from segue.models.sequence import Mark, Sequence
from segue.models.transformers.attention import Groups
from segue.models.transformers.kv import KVCache
from segue.models.transformers.together import MOST, Together
from tests.models.families import CONFIGS, Twins, twins
from tests.models.transformers.test_packed_trees import TOLERANCE, check, deepest_path, random_tree, tokens
from tests.mutation import mutate


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> Twins:
    return twins(request.param, lean=True)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Groups]:
    """The groups of every forward."""
    found: list[Groups] = []
    original = Groups.__init__

    def watched(self: Groups, *arguments: Any) -> None:
        original(self, *arguments)
        found.append(self)

    monkeypatch.setattr(Groups, "__init__", watched)
    return found


def cache(sequence: Sequence) -> KVCache:
    assert isinstance(sequence.past, KVCache)
    return sequence.past


def filled(pair: Twins, rng: random.Random, lengths: list[int]) -> list[Sequence]:
    sequences = [pair.lm.sequence() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        tree = random_tree(rng, 1)
        for _ in range(length - 1):
            tree.add(len(tree) - 1, tokens(rng, 1)[0])
        pair.lm.forward([(sequence, tree, Want(logits="none"))])
        sequence.commit(list(range(length)))
    return sequences


def walk(pair: Twins, rng: random.Random) -> None:
    """Sequences of unlike lengths grow, shrink, fork and leave; every forward agrees with the oracle."""
    sequences = filled(pair, rng, [1, 9, 30, 17, 5, 25, 12, 3])
    for turn in range(6):
        trees = [random_tree(rng, 1 if (place + turn) % 3 else 1 + rng.randrange(9)) for place in range(len(sequences))]
        assert check(pair, sequences, trees) < TOLERANCE
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.commit(deepest_path(tree))
        if turn == 1:
            sequences[2].rollback(Mark(4, None))
            sequences.append(sequences[5].fork())
        if turn == 2:
            sequences.pop(3).release()
            rng.shuffle(sequences)


def test_each_text_is_as_if_it_were_alone(pair: Twins, seen: list[Groups]) -> None:
    walk(pair, random.Random(5))
    batches = [batch for groups in seen for batch in groups.together]
    assert {batch.nodes > 1 for batch in batches} == {False, True}
    assert max(batch.width for batch in batches) >= 5


SPAN = "range(begin + item.since, begin + item.since + n)"
MUTATIONS = {
    "rows behind the last one are seen": (Together, "_mask", "cache.base + 1", "cache.base + 2"),
    "nobody's past is hidden": (Together, "_mask", "additive(visible, like)", "additive(visible | True, like)"),
    "rows go one place on": (Together, "__init__", SPAN, SPAN.replace("since", "since + 1")),
    "rows are handed back unsorted": (Together, "_back", "self._in_order", "True"),
    "everybody reads the first": (Together, "__init__", "padded[place] = row", "padded[place] = self.rows[0]"),
    "the token axis is forgotten": (Groups, "joined", "self._order is None", "True"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_shows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    mutate(monkeypatch, *MUTATIONS[name])
    with pytest.raises((AssertionError, ValueError, IndexError, RuntimeError)):
        walk(twins("llama", lean=True), random.Random(5))


def test_shared_beginnings_and_tails_are_joined(pair: Twins, seen: list[Groups]) -> None:
    """Forks read one piece, and tails of their own beside those of strangers."""
    rng = random.Random(8)
    limit = pair.lm.context_length
    parent, stranger = filled(pair, rng, [min(70, limit - 20), 11])
    forks = [parent.fork() for _ in range(3)]
    for size in (1, 4):
        sequences = [forks[0], stranger, *forks[1:]]
        trees = [random_tree(rng, size + i % 2) for i in range(4)]
        assert check(pair, sequences, trees) < TOLERANCE
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.commit(deepest_path(tree))
    if limit > 90:
        assert len({id(cache(fork).shared[0].slot) for fork in forks}) == 1
        assert any(groups.together for groups in seen)


def test_long_chunks_go_by_themselves(seen: list[Groups]) -> None:
    pair, rng = twins("llama", lean=True), random.Random(9)
    sequences = filled(pair, rng, [5, 6, 7, 8])
    trees = [random_tree(rng, size) for size in (1, MOST + 1, 1, MOST)]
    assert check(pair, sequences, trees) < TOLERANCE
    (batch,) = seen[-1].together
    assert [item.stop - item.start for item in batch.items] == [1, 1]
    assert sorted(item.stop - item.start for item in seen[-1].single) == [MOST, MOST + 1]


def test_nothing_of_a_text_that_failed_stays_for_the_next() -> None:
    """What is masked still takes part in a product: NaN there would be everybody's."""
    pair, rng = twins("llama", lean=True), random.Random(10)
    first, failed, last = filled(pair, rng, [9, 40, 30])
    slot = cache(failed).slot
    assert slot is not None
    place = slot.slab, slot.index
    with torch.inference_mode():
        for pair_of_buffers in slot.buffers:
            for part in pair_of_buffers:
                part.fill_(float("nan"))
    failed.release()
    del slot
    (fresh,) = filled(pair, rng, [2])
    new = cache(fresh).slot
    assert new is not None
    assert (new.slab, new.index) == place
    assert check(pair, [first, fresh, last], [random_tree(rng, 1) for _ in range(3)]) < TOLERANCE
