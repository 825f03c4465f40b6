"""Adaptive weighted rejection sampling: a token from p among those that pass a check, and an unbiased estimate of how
much of p passes, with a handful of checks instead of one for every token (Lipkin et al. 2025, arXiv:2504.05410).

Tokens are drawn from p without replacement until one passes: that one has the law of p restricted to what passes. With
Z = sum of p over all that pass, E[weight 1(token = x)] = p(x) 1(x passes), so E[weight] = Z.

Both estimators may at any time be given everything that passes (`mask`) instead of further checks: then the walk only
leaves out tokens that would be refused, and the expectation stays what it is. This bounds the walk where little passes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segue.ops.chance import Chance

PEAKED = 2 / 3  # above this largest p the geometric estimator needs fewer checks than the two of the recursive one
NEGLIGIBLE = 1e-15  # bits of a geometric draw with less probability are 0
Check = Callable[[int], bool]
Mask = Callable[[], Tensor]
Drawn = tuple[int | None, float]  # the token, None where nothing passes, and the weight


def first(p: Tensor, check: Check, chance: Chance, mask: Mask | None = None, patience: int = 0) -> Drawn:
    """The first token of the walk that passes, with weight 1: the right law, but no estimate."""
    left = _Left(p, check, mask, patience)
    while left.mass > 0:
        token = chance.index(left.p)
        if left.passes(token):
            return token, 1.0
    return None, 0.0


def recursive(p: Tensor, check: Check, chance: Chance, mask: Mask | None = None, patience: int = 0) -> Drawn:
    """Recursive AWRS: one check more than `first`, of the token that is drawn next. p (V,) sums to 1.

    With R the mass refused so far and q = p(x) / (1 - R), E[f] = q f(x) + (1 - q) E[f | not x]: refused draws multiply
    by 1 - q, which together is 1 - R, and the rest is 1 or q by whether the next token passes.
    """
    left = _Left(p, check, mask, patience)
    while left.mass > 0:
        before, token = left.mass, chance.index(left.p)
        if left.passes(token):
            share = float(left.p[token])
            left.remove(token)
            if left.mass == 0 or left.passes(chance.index(left.p)):
                return token, before
            return token, share
    return None, 0.0


def geometric(
    p: Tensor, check: Check, chance: Chance, accepts: int = 2, mask: Mask | None = None, patience: int = 0
) -> Drawn:
    """Geometric AWRS: the run with replacement that would have passed `accepts` times, from a walk without replacement.
    p (V,) sums to 1; `accepts` is at least 2, and more of them mean less variance.

    Before every draw of the walk the run has drawn refused tokens again a geometrically distributed number of times.
    With r refusals in all, (accepts - 1) / (accepts + r - 1) is the unbiased estimate of a negative binomial's
    probability.
    """
    left = _Left(p, check, mask, patience)
    refused, found = 0, None
    for _ in range(accepts):
        while True:
            if left.mass <= 0:
                return None, 0.0
            refused += repeats(1 - left.mass, chance)
            token = chance.index(left.p)
            if left.passes(token):
                break
            refused += 1
        found = token if found is None else found
    return found, (accepts - 1) / (accepts + refused - 1)


def repeats(r: float, chance: Chance) -> int:
    """A draw k with probability (1 - r) r^k, 0 <= r < 1. Its binary digits are independent, and the one worth 2^j is
    set with probability r^(2^j) / (1 + r^(2^j)): as many choices as it has digits."""
    count, place = 0, 1
    while r > NEGLIGIBLE and place < 1 << 60:
        if chance.keeps(r, 1 + r):
            count += place
        r, place = r * r, 2 * place
    return count


class _Left:
    """What is left of p in a walk: refused tokens are taken out, accepted ones are remembered."""

    def __init__(self, p: Tensor, check: Check, mask: Mask | None, patience: int) -> None:
        self.p = p.detach().to("cpu", torch.float64, copy=True)
        self.p /= self.p.sum()
        self.mass = 1.0
        self._check = check
        self._mask = mask
        self._patience = patience
        self._known: set[int] = set()

    def passes(self, token: int) -> bool:
        if token in self._known:
            return True
        if self._check(token):
            self._known.add(token)
            return True
        self.remove(token)
        self._patience -= 1
        if self._patience == 0 and self._mask is not None:
            passing = self._mask().cpu()
            self.p.masked_fill_(~passing, 0)
            self.mass = float(self.p.sum())
            self._known = set(passing.nonzero()[:, 0].tolist())
        return False

    def remove(self, token: int) -> None:
        self.p[token] = 0
        self.mass = float(self.p.sum())
