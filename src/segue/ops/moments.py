"""The distribution nearest to a sample whose means are given: exponential tilting, by its convex dual.

Of all q, the one with E_q[f] = F that is nearest to p in KL(q || p) is q(x) = p(x) exp(-mu . f(x)) / Z, and mu is where
the convex dual log E_p[exp(-mu . f)] + mu . F is smallest: its gradient is F - E_q[f].

Draws of several contexts (prompts) are tilted each within its own: q(x | c) = p(x | c) exp(-mu . f(x)) / Z(c), and
F are the means over contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def tilt(
    values: Array,
    targets: Array,
    weights: Array | None = None,
    *,
    groups: NDArray[np.intp] | None = None,
    ridge: float = 0.0,
    steps: int = 200,
) -> tuple[Array, Array]:
    """mu (K,) and the weights (N,) of the tilted sample.

    `values` (N, K): f of every draw. `targets` (K,): F. `weights` (N,): of the draws, if not equal. `groups` (N,): the
    context of each draw, from 0 on; one for all if left out. `ridge` adds ridge / 2 |mu|^2, which keeps mu finite where
    no weighting of the draws has the means F. Raises ValueError where none has and ridge is 0.
    """
    n, size = values.shape
    context = np.zeros(n, dtype=np.intp) if groups is None else groups
    count = int(context.max()) + 1
    given = np.ones(n) if weights is None else weights
    base = np.log(given / np.bincount(context, given, count)[context])
    mu = np.zeros(size)

    def look(at: Array) -> tuple[float, Array]:
        exponent = base - values @ at
        top = np.full(count, -np.inf)
        np.maximum.at(top, context, exponent)
        mass = np.exp(exponent - top[context])
        total = np.bincount(context, mass, count)
        dual = float((top + np.log(total)).mean()) + float(at @ targets) + ridge / 2 * float(at @ at)
        return dual, mass / total[context] / count

    dual, mass = look(mu)
    for _ in range(steps):
        mean = mass @ values
        gradient = targets - mean + ridge * mu
        if np.abs(gradient).max() < 1e-10:
            return mu, mass
        means = np.stack([np.bincount(context, mass * column, count) for column in values.T], -1) * count
        centred = values - means[context]
        hessian = (centred * mass[:, None]).T @ centred + (ridge + 1e-12) * np.eye(size)
        step = -np.linalg.solve(hessian, gradient)
        share = 1.0
        while share > 1e-12:  # back until the dual falls (Armijo)
            there, tilted = look(mu + share * step)
            if there <= dual + 1e-4 * share * float(gradient @ step):
                break
            share /= 2
        else:
            break
        mu, dual, mass = mu + share * step, there, tilted
    if np.abs(targets - mass @ values + ridge * mu).max() < 1e-6:
        return mu, mass
    apart = int(np.abs(targets - mass @ values).argmax())
    raise ValueError(
        f"no weighting of the {n} draws has the means {targets.tolist()} (number {apart} gets to "
        f"{float(mass @ values[:, apart]):.6g}): draw more, ask for fewer metrics, or set ridge above 0"
    )
