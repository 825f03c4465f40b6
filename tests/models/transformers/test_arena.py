"""Slots are given out, zeroed and taken back, and memory that nobody holds is free."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from segue.models.transformers.arena import BYTES, SHORTEST, SLOTS, Arena
from segue.models.transformers.layout import LayerShape, Layout

SHAPE = LayerShape(2, 8, 4, torch.float32, torch.device("cpu"))


@pytest.fixture
def arena() -> Arena:
    return Arena(Layout.of([SHAPE, SHAPE, LayerShape(1, 8, 8, torch.float32, torch.device("cpu"))]))


def test_slots_lie_side_by_side(arena: Arena) -> None:
    slots = [arena.take(rows) for rows in (1, SHORTEST, 17)]
    assert len({id(slot.slab) for slot in slots}) == 1
    assert [slot.index for slot in slots] == [0, 1, 2]
    assert [[tuple(part.shape) for part in pair] for pair in slots[0].buffers] == [
        [(2, 2, SHORTEST, 8), (2, 2, SHORTEST, 4)],
        [(1, 1, SHORTEST, 8), (1, 1, SHORTEST, 8)],
    ]
    longer = arena.take(SHORTEST + 1)
    assert longer.slab.rows == 2 * SHORTEST


def test_what_is_given_back_is_taken_again_and_is_zero(arena: Arena) -> None:
    first, second = arena.take(5), arena.take(5)
    for pair in first.buffers:
        for part in pair:
            part.fill_(float("nan"))
    slab = first.slab
    del first, pair, part
    again = arena.take(9)
    assert (again.slab, again.index) == (slab, 0)
    assert all(not part.any() for pair in again.buffers for part in pair)
    assert second.index == 1


def test_a_full_slab_is_followed_by_another_and_an_empty_one_is_freed(arena: Arena) -> None:
    slots = [arena.take(5) for _ in range(SLOTS + 1)]
    assert len({id(slot.slab) for slot in slots}) == 2
    kept = weakref.ref(slots[-1].slab)
    del slots[-1]
    gc.collect()
    assert kept() is None
    del slots[3]
    assert arena.take(5).index == 3


def test_rows_that_fill_a_slab_lie_alone(arena: Arena) -> None:
    rows = BYTES // arena.layout.bytes_per_row
    slot = arena.take(rows)
    assert (slot.slab.rows, slot.slab.slots) == (rows, 1)
    assert arena.alone(7).slab.rows == 7
