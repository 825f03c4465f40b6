"""Top-k as an optimum: keep the tokens that are worth their price, and share out the rest by the same divergence.

1. p is the model's distribution after the request's settings (penalties, temperature, top-p, ...), sorted.
2. Look for q that minimises D(q, p) (primal; dual: D(p, q)) + price * |support of q|, with the Bregman divergence of
   phi(x) = x^alpha / (alpha (alpha - 1)), at alpha = 1 x log x, which gives ordinary top-k.
3. The best support of size k are the k largest; the cost is discretely convex in k, so the smallest k with
   cost(k + 1) >= cost(k) is the best: found by doubling and halving.
4. On the support q solves phi'(q) = phi'(p) + nu (dual: phi''(q) (q - p) = nu) with sum 1, nu by closed form or by
   Newton's method within a bracket.
5. Draw from q. At temperature 0 the likeliest token is taken, as q keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segue.card import Card, Claim, Limit, Paper, SameTarget, SameTokens
from segue.choose.sample.base import Sampling
from segue.ops.bregman import truncate


@dataclass(frozen=True)
class BregmanTopk(Sampling):
    """A support that adapts to every distribution; alpha below 1 sharpens what is kept, above 1 it flattens it."""

    card = Card(
        paper=Paper(id="2505.19371", title="Foundations of Top-k Decoding For Language Models", year=2025),
        claim=Claim(value=None, unit="none", baseline="top-k", setting="open generation and maths: competitive"),
        exact=(SameTokens(), SameTarget(target="bregman"), Limit(knob="price", exact_at=0.0, begin=0.4)),
        departs="no cap on k unless k_max sets one, as doubling looks at about as many tokens as it keeps",
        check="spec",
    )

    alpha: float = 1.5  # of the divergence; 1 is Kullback-Leibler: ordinary top-k
    price: float = 0.001  # lambda: what a kept token costs; 0 keeps all as they are, a large one only the likeliest
    dual: bool = False  # D(p, q) instead of D(q, p); needs alpha above 1
    k: int = 0  # a fixed size instead of a price; 0 lets the price decide
    k_max: int = 0  # sizes above this are not looked at; 0 is no limit

    def __post_init__(self) -> None:
        if not 0.05 <= self.alpha <= 50:
            raise ValueError(f"alpha={self.alpha} is not allowed: from 0.05 to 50 (1 is ordinary top-k)")
        if self.dual and self.alpha <= 1:
            raise ValueError(
                f"alpha={self.alpha} is not allowed with dual=True: above 1 (else every dropped token costs infinitely "
                "much), or dual=False"
            )
        if not 0 <= self.price < float("inf"):
            raise ValueError(f"price={self.price} is not allowed: at least 0 (0 keeps every token)")
        for name in ("k", "k_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1, or 0 to leave it open")

    def reshape(self, p: Tensor) -> Tensor:
        q, _ = truncate(p[None], self.alpha, self.price, dual=self.dual, k=self.k, k_max=self.k_max)
        return q[0]
