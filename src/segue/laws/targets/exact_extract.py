"""The target of exact extraction: every span scored by a forward pass of its own, token by token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import TableOracle
from segue.laws.warped import softmax
from segue.laws.worlds import World

CLOSE = 1e-3
LONGEST = 4
LogP = Callable[[tuple[int, ...]], list[float]]  # output -> log-probabilities of what follows


def hold(method: Any, world: World) -> dict[str, float]:
    """The best spans and their costs on a network, and the law of spans at a temperature on a table. Raises
    LawBroken."""
    compared, apart = 0, 0.0
    for prompt in world.prompts[:3]:
        log_p = _reader(world, prompt)
        for eos in (frozenset([1]), frozenset([0, 2 % world.lm.vocab_size])):
            for normalise in (False, True):
                form = replace(method, longest=LONGEST, normalise=normalise, spans=3)
                with ending_at(world.lm, eos):
                    costs = brute(form, prompt, eos, log_p)
                    compared += _best(form, world, prompt, costs)
                    if isinstance(world.oracle, TableOracle):
                        apart = max(apart, _law(form, world, prompt, costs))
    return {"tokens": compared, "total variation": apart}


def brute(method: Any, prompt: list[int], ends: frozenset[int], log_p: LogP) -> dict[tuple[int, int], float]:
    """Cost of every span (start, stop) of the prompt."""
    passage = [token for token in prompt if token not in ends]
    costs = {}
    for start in range(len(passage)):
        for stop in range(start + 1, min(start + LONGEST, len(passage)) + 1):
            span = passage[start:stop]
            cost = -sum(log_p(tuple(span[:i]))[t] for i, t in enumerate(span))
            cost -= math.log(sum(math.exp(log_p(tuple(span))[e]) for e in ends))
            costs[start, stop] = cost / (len(span) + 1) if method.normalise else cost
    return costs


def _reader(world: World, prompt: list[int]) -> LogP:
    """Log-probabilities after an output, each looked up once."""

    @functools.cache
    def log_p(output: tuple[int, ...]) -> list[float]:
        found: list[float] = world.oracle.logits_after(prompt, output).double().log_softmax(-1).tolist()
        return found

    return log_p


def _best(method: Any, world: World, prompt: list[int], costs: dict[tuple[int, int], float]) -> int:
    settings = Settings(max_tokens=8)
    if not costs:
        return 0
    order = sorted(costs.values())[: method.spans]
    for batch in ([prompt], [prompt, *[p for p in world.prompts if set(p) - world.lm.eos_ids]]):
        answer = decode(world.lm, method, batch, settings)[0]
        assert answer.candidates
        found = [-c.score for c in answer.candidates]
        if any(abs(a - b) > CLOSE for a, b in zip(found, order, strict=True)):
            raise LawBroken(f"{method} on {prompt}: the best spans cost {found}, and by brute force {order}")
        passage = [token for token in prompt if token not in world.lm.eos_ids]
        texts = {tuple(passage[a:b]) for (a, b), cost in costs.items() if cost < order[0] + CLOSE}
        if tuple(answer.tokens) not in texts:
            raise LawBroken(f"{method} on {prompt}: {answer.tokens}, where the cheapest spans are {texts}")
    return len(costs)


def _law(method: Any, world: World, prompt: list[int], costs: dict[tuple[int, int], float]) -> float:
    if not costs:
        return 0.0
    settings = Settings(temperature=0.7, max_tokens=8)
    passage = [token for token in prompt if token not in world.lm.eos_ids]
    law: dict[tuple[int, ...], float] = {}
    for (start, stop), p in zip(costs, softmax([-c / 0.7 for c in costs.values()]), strict=True):
        text = tuple(passage[start:stop])
        law[text] = law.get(text, 0.0) + p
    apart = total_variation(distribution(world.lm, method, prompt, settings).p, law)
    if apart > CLOSE:
        raise LawBroken(f"{method} on {prompt}: its law of spans is {apart:.3g} from the exact one")
    return apart
