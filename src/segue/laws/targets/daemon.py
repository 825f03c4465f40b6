"""The target of DAEMON: one of M draws, by weights p / q exp(-energy) written out token by token."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from segue.choose.parts.energy import Energy
from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.drawing import SAMPLED, TOLERANCE, answers, edges_hold, model_logp
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.worlds import World

ENERGY = Energy(("sr2", "tr8", "information"), (2.0, -1.5, 0.7), (0.1, 0.2, 1.0), (0.5, 0.4, 1.5))


def hold(method: Any, world: World) -> dict[str, float]:
    """The law of the answer on a table; every candidate's weight on a network. Raises LawBroken."""
    method = replace(method, energy=ENERGY, tau=0.8)
    if isinstance(world.oracle, TableOracle):
        return {"total variation": max(_law(replace(method, samples=m), world) for m in (1, 2, 3))}
    compared = edges_hold(replace(method, samples=3), world)
    method = replace(method, samples=5)
    for settings in (Settings(max_tokens=7, seed=2), Settings(max_tokens=7, seed=4, temperature=0.7)):
        for prompt, answer in answers(method, world, settings):
            weights = []
            for candidate in answer.candidates or []:
                t = settings.temperature or 1.0
                target, proposal = (_tempered(world, prompt, candidate.tokens, at) for at in (t, t * method.tau))
                ratio = float((target - proposal).sum())
                logw = ratio - energy(candidate.tokens, model_logp(world, prompt, candidate.tokens))
                if candidate.logw is None or abs(logw - candidate.logw) > 2e-3:
                    raise LawBroken(f"{method}: {candidate} has log-weight {logw:.6g}")
                weights.append(math.exp(logw))
                compared += len(candidate.tokens)
            if len(weights) == method.samples:  # all were drawn once
                shares = [w / sum(weights) for w in weights]
                for candidate, share in zip(answer.candidates or [], shares, strict=True):
                    if abs(candidate.score - share) > 2e-3:
                        raise LawBroken(f"{method}: {candidate} is given with probability {share:.6g}")
    return {"tokens": compared}


def _tempered(world: World, prompt: Sequence[int], text: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probability of every token at a temperature."""
    assert isinstance(world.oracle, NetworkOracle)
    found = []
    for place, token in enumerate(text):
        row = _allowed(world, prompt, text[:place]) / temperature
        found.append(row.double().log_softmax(-1)[token])
    return torch.stack(found)


def _allowed(world: World, prompt: Sequence[int], text: Sequence[int]) -> torch.Tensor:
    """The row after a text, with what the model itself forces or forbids."""
    from segue.models.run import Run

    assert isinstance(world.oracle, NetworkOracle)
    run = Run(world.lm, list(prompt), Settings(max_tokens=7))
    return run.target.processed(world.oracle.logits_after(prompt, text), [*run.ids, *text])


def _law(method: Any, world: World) -> float:
    assert isinstance(world.oracle, TableOracle)
    prompt, largest = world.prompts[-1], 0.0
    for settings in SAMPLED:
        t = settings.temperature or 1.0
        p = world.oracle.law(prompt, replace(settings, temperature=t))
        q = world.oracle.law(prompt, replace(settings, temperature=t * method.tau))
        weight = {x: p[x] / q[x] * math.exp(-energy(x, model_logp(world, prompt, x))) for x in q}
        expected: Law = defaultdict(float)
        for draws in itertools.product(q, repeat=method.samples):
            total = sum(weight[x] for x in draws)
            for x in draws:
                expected[x] += math.prod(q[y] for y in draws) * weight[x] / total
        apart = total_variation(distribution(world.lm, method, prompt, settings).p, expected)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest


def energy(tokens: Sequence[int], logp: float) -> float:
    """ENERGY of a text, counted by hand."""
    pairs = list(itertools.pairwise(tokens))
    sr2 = sum(pairs.index(pair) < i for i, pair in enumerate(pairs)) / len(pairs) if pairs else 0.0
    seen = [token in list(tokens)[max(0, i - 8) : i] for i, token in enumerate(tokens)]
    values = (sr2, sum(seen) / len(seen), -logp / len(tokens))
    return sum(m * (v - c) / s for m, v, c, s in zip(ENERGY.mu, values, ENERGY.mean, ENERGY.std, strict=True))
