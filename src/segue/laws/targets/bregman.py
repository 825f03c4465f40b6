"""The target of Bregman decoding: of all supports the one with the lowest cost, by listing them, and on it the optimum
by plain bisection."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import Law, ScriptedChance, distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.warped import softmax, warped
from segue.laws.worlds import World
from segue.models.run import Run

TOKENS = 10
FEW, WIDEST = 3, 16  # of a dual, whose list takes long: tokens, and sizes that are listed
HALVINGS = 60
CLOSE = 2e-5  # of probabilities: rows of a tree and of a whole text differ by rounding
TOLERANCE = 1e-6  # the method's settings work in float32
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": 1.0, "price": 0.1},
    {"alpha": 0.5, "price": 0.1},
    {"alpha": 2.5, "price": 0.05, "dual": True},
)


def hold(method: Any, world: World) -> dict[str, float]:
    """Every distribution that a token is drawn from on a network; the law of whole texts on a table."""
    if isinstance(world.oracle, TableOracle):
        return {"total variation": max(_law(replace(method, **form), world) for form in FORMS)}
    assert isinstance(world.oracle, NetworkOracle)
    return {"tokens": sum(_draws(replace(method, **form), world) for form in FORMS)}


def optimum(p: list[float], method: Any, widest: int | None = None) -> list[float]:
    """The best q by listing: all supports, or where `widest` is given the largest tokens of every number up to it."""
    alive = [t for t in sorted(range(len(p)), key=lambda t: -p[t]) if p[t] > 0]
    if widest is None:
        marks = np.array([m for m in itertools.product((True, False), repeat=len(alive)) if any(m)])
    else:
        marks = np.tri(min(widest, len(alive)), len(alive), dtype=bool)
    costs, rows = listed(np.array([p[t] for t in alive]), marks, method.alpha, method.price, method.dual)
    best = int(costs.argmin())
    if widest is not None and marks[best].sum() == widest < len(alive):
        raise LawBroken(f"{method}: the list of {widest} sizes is too short for {p}")
    found = [0.0] * len(p)
    for place, token in enumerate(alive):
        found[token] = float(rows[best, place])
    return found


def listed(p: Any, marks: Any, alpha: float, price: float, dual: bool) -> tuple[Any, Any]:
    """The cost (S,) of each of the supports (S, V) that are marked, and q (S, V) on it: the multiplier nu by halving an
    interval that holds it."""

    def q_at(nu: Any) -> Any:
        if dual:
            low, high = np.broadcast_to(p, marks.shape), np.full(marks.shape, 4.0)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                over = middle ** (alpha - 2) * (middle - p) > nu
                low, high = np.where(over, low, middle), np.where(over, middle, high)
            return low * marks
        if alpha == 1:
            return p * np.exp(nu) * marks
        inside = p ** (alpha - 1) + (alpha - 1) * nu
        return np.where(inside > 0, np.abs(inside), 1e-30) ** (1 / (alpha - 1)) * marks

    low, high = np.zeros((len(marks), 1)), np.ones((len(marks), 1))
    while (small := q_at(high).sum(-1, keepdims=True) < 1).any():
        high = np.where(small, 2 * high, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        over = q_at(middle).sum(-1, keepdims=True) > 1
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    q = q_at(low)
    apart = divergence(p, q, alpha) if dual else divergence(q, p, alpha)
    return apart + price * marks.sum(-1), q


def divergence(x: Any, y: Any, alpha: float) -> Any:
    """D(x, y) by its definition over the last axis, with its limits at 0."""

    def phi(z: Any) -> Any:
        if alpha == 1:
            return np.where(z > 0, z * np.log(np.where(z > 0, z, 1.0)), 0.0)
        return z**alpha / (alpha * (alpha - 1))

    known = np.where(y > 0, y, 1.0)  # where y is 0, so is phi'(y) for a dual; no primal asks
    slope = np.log(known) + 1 if alpha == 1 else known ** (alpha - 1) / (alpha - 1)
    return (phi(x) - phi(y) - slope * (y > 0) * (x - y)).sum(-1)


def _law(method: Any, world: World) -> float:
    assert isinstance(world.oracle, TableOracle)
    prompt, largest = world.prompts[-1], 0.0
    for settings in (Settings(temperature=1.0, max_tokens=3), Settings(temperature=1.4, top_k=2, max_tokens=3)):
        law: Law = {}
        running: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while running:
            output, weight = running.pop()
            row = world.oracle._scores([*prompt, *output], len(prompt), settings)
            for token, share in enumerate(optimum(warped(row, settings), method)):
                text = (*output, token)
                if share > 0 and (token in world.lm.eos_ids or len(text) == settings.max_tokens):
                    law[text] = weight * share
                elif share > 0:
                    running.append((text, weight * share))
        found = distribution(world.lm, method, prompt, settings)
        largest = max(largest, total_variation(found.p, law))
    if not largest <= TOLERANCE:
        raise LawBroken(f"{method}: its law is {largest:.3g} from the optimum's in total variation")
    return largest


class Watched(ScriptedChance):
    """Notes what is drawn from, and draws in turn the likeliest token and the second."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def index(self, p: Any) -> int:
        self.seen.append(p.double().tolist())
        order = p.sort(descending=True, stable=True).indices
        second = len(self.seen) % 2 == 0 and float(p[order[1]]) > 0
        return int(order[1] if second else order[0])


def _draws(method: Any, world: World) -> int:
    assert isinstance(world.oracle, NetworkOracle)
    compared = 0
    length, widest = (FEW, WIDEST) if method.dual else (TOKENS, world.lm.vocab_size)
    settings = Settings(temperature=0.8, max_tokens=length, ignore_eos=True)
    for prompt in world.prompts:
        chance = Watched()
        (answer,) = decode(world.lm, method, [prompt], settings, source=chance)
        if len(chance.seen) != len(answer.tokens):
            raise LawBroken(f"{method}: {len(chance.seen)} draws for {len(answer.tokens)} tokens")
        ruled = Run(world.lm, prompt, replace(settings, temperature=0.0))  # what the model itself forces or forbids
        for place, found in enumerate(chance.seen):
            row = world.oracle.logits_after(prompt, answer.tokens[:place]).double()
            row = ruled.target.processed(row, ruled.ids + answer.tokens[:place])
            expected = optimum(softmax((row / settings.temperature).tolist()), method, widest)
            off = max(abs(a - b) for a, b in zip(found, expected, strict=True))
            if not off <= CLOSE:
                raise LawBroken(f"{method}: a probability of token {place} is off by {off:.3g}")
            compared += 1
    return compared
