"""Divergences against scipy's."""

from __future__ import annotations

import torch
from scipy.spatial.distance import jensenshannon

from segue.ops.divergence import jensen_shannon


def test_it_is_the_square_of_scipys_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 30, generator=generator, dtype=torch.float64) * 3
    rows[0, 3] = rows[1, 3] = rows[2, 4] = float("-inf")
    p, q = rows[0].log_softmax(-1), rows[1:].log_softmax(-1)
    expected = [jensenshannon(p.exp().numpy(), other.exp().numpy()) ** 2 for other in q]
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor(expected, dtype=torch.float64))
    assert float(jensen_shannon(p, p[None])) == 0
