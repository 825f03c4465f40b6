"""Truncation as an optimum: the distribution nearest to p that pays a price for every token it keeps.

Nearness is a Bregman divergence D(x, y) = sum phi(x) - phi(y) - phi'(y) (x - y) of the family phi(x) = x^a / (a (a-1)),
at a = 1 x log x (Kullback-Leibler). The primal takes D(q, p), the dual D(p, q); both add price * |support of q|. The
best support of a size is that of the largest p, and the cost of the best one is discretely convex in its size.
Everything is in float64 on rows that are sorted, largest first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDS = 120  # of a safeguarded root, at most; a handful are used
FINE = 2e-14  # relative: what a last step of a root may be; the one before was the root of that


def truncate(
    p: Tensor, alpha: float, price: float, *, dual: bool = False, k: int = 0, k_max: int = 0
) -> tuple[Tensor, Tensor]:
    """The optimum for rows of probabilities (B, V), and the sizes of its supports (B,). `k` fixes the size instead of
    the price (fewer where fewer tokens have any probability), `k_max` limits it; 0 is off."""
    ordered, places = p.double().sort(dim=-1, descending=True, stable=True)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    most = (ordered > 0).sum(-1)
    most = most.clamp(max=k_max) if k_max else most
    sizes = most.clamp(max=k) if k else best_size(ordered, most, alpha, price, dual)
    width = int(sizes.max())
    q = renormalise(ordered[:, :width], sizes, alpha, dual)
    whole = torch.zeros_like(ordered)
    whole[:, :width] = q
    return torch.zeros_like(ordered).scatter(-1, places, whole), sizes


def renormalise(p: Tensor, sizes: Tensor, alpha: float, dual: bool = False) -> Tensor:
    """The nearest distribution (B, K) on the first `sizes` (B,) tokens of sorted rows (B, K) of probabilities."""
    kept = torch.arange(p.shape[-1], device=p.device) < sizes[:, None]
    p = p.masked_fill(~kept, 0.0)
    mass, count = p.sum(-1, keepdim=True), sizes[:, None].double()
    missing = (1 - mass).clamp(min=0.0)
    if alpha == 1:
        q = p / mass
    elif alpha == 2:
        q = p + missing / count
    elif alpha == 1.5 and not dual:
        roots = p.sqrt()
        total = roots.sum(-1, keepdim=True)
        shift = missing / (total + (total**2 + count * missing).sqrt())  # without the cancellation of the other form
        q = (roots + shift) ** 2
    else:
        q = _solved(p, kept, alpha, dual)
    q = torch.where(kept, q, 0.0)
    q = q / q.sum(-1, keepdim=True)  # what is left is rounding
    return torch.where(missing > 0, q, p)


def best_size(p: Tensor, most: Tensor, alpha: float, price: float, dual: bool = False) -> Tensor:
    """The smallest size k (B,) with cost(k + 1) >= cost(k), at most `most` (B,): the optimum, as the cost is convex.
    Doubling, then halving, so that only about as many tokens are looked at as are kept."""
    if price == 0:
        return most
    low, high = torch.ones_like(most), torch.ones_like(most)
    while True:  # low - 1 is known to be too small
        going = ~_enough(p, high, most, alpha, price, dual)
        if not bool(going.any()):
            break
        low = torch.where(going, high + 1, low)
        high = torch.where(going, torch.minimum(2 * high, most), high)
    while bool((low < high).any()):
        middle = (low + high) // 2
        stop = _enough(p, middle, most, alpha, price, dual)
        high = torch.where(stop, middle, high)
        low = torch.where(stop, low, torch.minimum(middle + 1, high))
    return low


def held(p: Tensor, sizes: Tensor, alpha: float, dual: bool = False) -> Tensor:
    """The divergence (B,) on the kept tokens of sorted rows (B, K)."""
    q = renormalise(p, sizes, alpha, dual)
    kept = torch.arange(p.shape[-1], device=p.device) < sizes[:, None]
    x, y = (p, q) if dual else (q, p)
    if alpha == 1:
        terms = torch.xlogy(x, x / y) - x + y
    else:
        terms = (x**alpha - y**alpha) / (alpha * (alpha - 1)) - y ** (alpha - 1) * (x - y) / (alpha - 1)
    return torch.where(kept, terms, 0.0).sum(-1)


def dropped(p: Tensor, alpha: float, dual: bool = False) -> Tensor:
    """What dropping a token of probability p adds to the divergence."""
    return p**alpha / (alpha * (alpha - 1)) if dual else p**alpha / alpha


def _enough(p: Tensor, sizes: Tensor, most: Tensor, alpha: float, price: float, dual: bool) -> Tensor:
    """Whether one token more than `sizes` (B,) would not pay (or there is none)."""
    more = torch.minimum(sizes + 1, most)
    width = int(more.max())
    rows = p[:, :width]
    both = held(torch.cat([rows, rows]), torch.cat([more, sizes]), alpha, dual)
    after, before = both.chunk(2)
    saved = dropped(p.gather(-1, (more - 1)[:, None])[:, 0], alpha, dual)
    return (sizes >= most) | (after - before - saved + price >= 0)


def _solved(p: Tensor, kept: Tensor, alpha: float, dual: bool) -> Tensor:
    """q (B, K) in terms of x, the new probability of one token: all others follow from it, and their sum rises with it.
    Of the likeliest one below alpha = 1 and of the least likely one above, so that x says it precisely: that one's
    change is the largest in proportion."""
    count = kept.sum(-1, keepdim=True)
    one = p.gather(-1, count - 1) if alpha > 1 else p[:, :1]
    p = torch.where(kept, p, one)  # what is not kept has an easy root, and is not looked at
    spread = _lifted if dual else _shifted

    def excess(x: Tensor) -> tuple[Tensor, Tensor]:
        q, slope = spread(p, one, x, alpha)
        q, slope = torch.where(kept, q, 0.0), torch.where(kept, slope, 0.0)
        return q.sum(-1, keepdim=True) - 1, slope.sum(-1, keepdim=True)

    x = root(excess, one, 1 / count if alpha > 1 else torch.ones_like(one))
    return spread(p, one, x, alpha)[0]


def _shifted(p: Tensor, one: Tensor, x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Primal: phi'(q) - phi'(p) is the same for all tokens. With the slopes dq/dx."""
    e = alpha - 1
    if e > 0:
        log_s = e * x.log() + torch.log1p(-torch.exp(e * (one.log() - x.log())).clamp(max=1.0))
        q = torch.exp(torch.logaddexp(e * p.log(), log_s) / e)
    else:
        q = (p**e - one**e + x**e) ** (1 / e)
    return q, (x / q) ** (alpha - 2)


def _lifted(p: Tensor, one: Tensor, x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Dual: nu = phi''(q) (q - p) is the same for all tokens. With the slopes dq/dx."""
    nu = (x - one) * x ** (alpha - 2)
    if alpha == 1.5:
        q = ((nu + (nu**2 + 4 * p).sqrt()) / 2) ** 2
    elif alpha == 3:
        q = (p + (p**2 + 4 * nu).sqrt()) / 2
    else:

        def excess(q: Tensor) -> tuple[Tensor, Tensor]:
            power = q ** (2 - alpha)
            return q - p - nu * power, 1 - (2 - alpha) * nu * power / q

        z = nu ** (1 / (alpha - 1))  # where a token of probability 0 would come to lie
        q = root(excess, torch.maximum(p, z), z + p / min(1.0, alpha - 1))
    return q, _steepness(x, one, alpha) / _steepness(q, p, alpha)


def _steepness(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    """d nu / dq of the dual."""
    return q ** (alpha - 3) * ((alpha - 1) * q + (2 - alpha) * p)


def root(f: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Where functions that rise from below to above 0 between `low` and `high` are 0, each element for itself: Newton's
    method where it stays in the bracket and halves its steps, else the middle. `f` gives values and slopes."""
    x = (low + high) / 2
    before = last = high - low  # the last two steps
    for _ in range(ROUNDS):
        value, slope = f(x)
        low, high = torch.where(value < 0, x, low), torch.where(value < 0, high, x)
        step = value / slope
        good = (x - step >= low) & (x - step <= high) & (2 * step.abs() <= before.abs())
        after = torch.where(value == 0, x, torch.where(good, x - step, (low + high) / 2))
        before, last = last, after - x
        x = after
        if bool((last.abs() <= FINE * x.abs()).all()):
            break
    return x
