"""The target of diverse beam search: the published formula, written out with full forwards and lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.oracle import endings, room
from segue.laws.targets import beam
from segue.laws.worlds import World
from segue.models.run import Run

TOKENS = 8
CLOSE = 1e-4
Text = tuple[int, ...]
LogP = Callable[[Text], Any]  # output -> (V,) log-probabilities


def hold(method: Any, world: World) -> dict[str, float]:
    """Every candidate with its score, against the naive search. With one group it is beam search."""
    found = beam.hold(replace(method, groups=1), world, briefly=True)
    log_p = _reader(world)
    compared = 0
    forms: list[dict[str, Any]] = [
        {"early": "full"},
        {"beams": 6, "groups": 3, "strength": 2.0, "early": "full", "length_penalty": 0.5},
    ]
    for prompt in world.prompts[1:3]:
        free = world.oracle.answer(prompt, Settings(max_tokens=TOKENS)).tokens
        for form in forms:
            for eos in (world.lm.eos_ids, frozenset([free[1], free[-1]])):
                with ending_at(world.lm, eos):
                    compared += _compare(replace(method, **form), world, prompt, log_p)
    return {name: count + compared for name, count in found.items()}


def _reader(world: World) -> Callable[[list[int]], LogP]:
    known: dict[tuple[Text, Text], Any] = {}

    def reader(prompt: list[int]) -> LogP:
        target = Run(world.lm, prompt, Settings(max_tokens=TOKENS))  # a model's own configuration may forbid tokens

        def log_p(output: Text) -> Any:
            key = (tuple(prompt), output)
            if key not in known:
                logp = world.oracle.logits_after(prompt, output).float().log_softmax(-1)
                known[key] = target.target.processed(logp, [*target.ids, *output]).numpy()
            return known[key]

        return log_p

    return reader


def _compare(method: Any, world: World, prompt: list[int], reader: Callable[[list[int]], LogP]) -> int:
    settings = Settings(max_tokens=TOKENS)
    (answer,) = decode(world.lm, method, [prompt], settings)
    ends, limit = endings(world.lm, settings), room(world.lm, prompt, settings)
    expected = naive(method, reader(prompt), ends, limit)
    assert answer.candidates is not None
    found = [(tuple(c.tokens), c.score) for c in answer.candidates]
    same = len(found) == len(expected) and {t for t, _ in found} == {t for t, _ in expected}
    if not same or any(abs(a - b) > CLOSE for (_, a), (_, b) in zip(found, expected, strict=True)):
        raise LawBroken(f"{method} on {prompt}: {found} where the published formula gives {expected}")
    return sum(len(tokens) for tokens, _ in found)


def naive(method: Any, log_p: LogP, ends: set[int], limit: int) -> list[tuple[Text, float]]:
    """Finished texts with their scores, best first, where a group stops once it has as many as it has beams."""
    size = method.beams // method.groups
    running: list[list[tuple[float, Text]]] = [[(0.0, ())] for _ in range(method.groups)]
    finished: list[list[tuple[float, Text]]] = [[] for _ in range(method.groups)]
    for step in range(1, limit + 1):
        said: list[int] = []
        for g in range(method.groups):
            if len(finished[g]) >= size or not running[g]:
                continue
            options = []
            for score, text in running[g]:
                row = log_p(text)
                for token in range(len(row)):
                    worth = score + float(np.float32(row[token])) - method.strength * said.count(token)
                    if worth > -math.inf:
                        options.append((worth, (*text, token)))
            options.sort(key=lambda option: -option[0])
            over = [o[1][-1] in ends or step == limit for o in options]
            for option, is_over in list(zip(options, over, strict=True))[:size]:
                if is_over:
                    finished[g].append((option[0] / step**method.length_penalty, option[1]))
            finished[g] = sorted(finished[g], key=lambda f: -f[0])[:size]
            going = [o for o, is_over in zip(options, over, strict=True) if not is_over]
            running[g] = going[:size]
            said += [text[-1] for _, text in running[g]]
    flat = sorted((f for group in finished for f in group), key=lambda f: -f[0])
    return [(text, score) for score, text in flat]
