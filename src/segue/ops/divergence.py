"""How far apart distributions are."""

from __future__ import annotations

import torch
from torch import Tensor


def jensen_shannon(logp: Tensor, logq: Tensor) -> Tensor:
    """(J,) Jensen-Shannon divergence in nats, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, of one distribution
    logp (V,) and each of logq (J, V); tokens of probability 0 count nothing."""
    logm = torch.logaddexp(logp, logq) - torch.log(torch.tensor(2.0, dtype=logq.dtype, device=logq.device))
    return (_kl(logp.expand_as(logq), logm) + _kl(logq, logm)) / 2


def _kl(logp: Tensor, logm: Tensor) -> Tensor:
    possible = ~torch.isneginf(logp)
    return torch.where(possible, logp.exp() * (logp - logm), torch.zeros_like(logp)).sum(-1)
