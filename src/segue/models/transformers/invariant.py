"""Rows whose logits do not depend on the rows beside them, bit for bit: drafts change no token in any precision.

A matrix product of one row and one of eight go through other kernels, which sum in another order; in bfloat16 that can
tip a near tie. Here every product sees exactly ROWS rows, the last ones padded, and every row attends alone, over its
own past laid out as plain decoding would have it. Costs some speed; what it promises is checked at load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from segue.data import CapabilityError
from segue.models.rows import rows_alone
from segue.models.transformers.quantized import Make, Product

if TYPE_CHECKING:
    from segue.models.lm import LM
    from segue.models.transformers.attention import Item
    from segue.models.transformers.parts import Form

ROWS = 8  # of every product


class InvariantProduct:
    """A product in buckets of ROWS rows."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.weight_bytes = product.weight_bytes

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[-2]
        missing = -rows % ROWS
        whole = pad(x, (0, 0, 0, missing)) if missing else x
        if whole.shape[-2] == ROWS:
            return self._product(whole)[..., :rows, :]
        parts = [self._product(part) for part in torch.split(whole, ROWS, dim=-2)]
        return torch.cat(parts, -2)[..., :rows, :]


def invariant(make: Make) -> Make:
    """Makes the same products in buckets."""
    return lambda weight, bias: InvariantProduct(make(weight, bias))


def own_rows(item: Item, layer: int, keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For every node of an item the keys and values (1, G, rows, d) that it sees, in the order of its text: shared
    pieces, the private past, and its ancestors in the tree."""
    pieces = [item.cache.piece(piece, layer) for piece in item.cache.shared]
    own = item.rows(layer) - item.cache.base
    if pieces:
        past = [torch.cat([p[i] for p in pieces] + [part[:, :, :own]], 2) for i, part in enumerate((keys, values))]
    else:
        past = [keys[:, :, :own], values[:, :, :own]]
    seen = []
    for node in range(item.since, len(item.tree)):
        if item.tree.is_chain and not pieces:
            seen.append((keys[:, :, : own + node + 1], values[:, :, : own + node + 1]))
            continue
        path = [own + n for n in item.tree.path(node)]
        seen.append((torch.cat((past[0], keys[:, :, path]), 2), torch.cat((past[1], values[:, :, path]), 2)))
    return seen


def within(rows: Tensor, form: Form) -> Tensor:
    """The last rows that a window leaves."""
    return rows if form.window is None else rows[:, :, -form.window :]


def check(lm: LM) -> None:
    """Raise CapabilityError where rows still depend on each other."""
    failed = [k for k, same in rows_alone(lm).items() if not same]
    if failed:
        raise CapabilityError(
            f"{lm.name} cannot be made invariant in {lm.precision}: {failed[0]} rows together give other bits than one "
            "by one, so something besides its linear layers mixes rows; leave invariant out"
        )
