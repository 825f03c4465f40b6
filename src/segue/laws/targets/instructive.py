"""The target of instructive decoding: by full forwards over both prompts with all of the output, no caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle, endings
from segue.laws.warped import warped
from segue.laws.worlds import World
from segue.models.run import Run

TOKENS, GAP = 16, 1e-4
TOLERANCE = 1e-6  # the method's settings work in float32
NOISE = 1  # the token that stands in for the first of every prompt
SAMPLED = (
    Settings(temperature=1.0, max_tokens=3),
    Settings(temperature=0.7, top_k=2, frequency_penalty=0.4, max_tokens=3),
)


def hold(method: Any, world: World) -> dict[str, float]:
    """Greedy output on a network, the law of samples on a table."""
    method = replace(method, instruction=1, noisy=(NOISE,))
    if isinstance(world.oracle, TableOracle):
        forms = [replace(method, eps=eps) for eps in (0.0, 0.3, 0.7)]
        return {"total variation": max(_samples(form, world, settings) for form in forms for settings in SAMPLED)}
    settings = Settings(max_tokens=TOKENS)
    compared = sum(_greedy(method, world, prompt, settings) for prompt in world.prompts)
    for edge in [e for e in edges(world.lm, world.oracle, world.prompts[1]) if e.settings.constraint is None]:
        with ending_at(world.lm, edge.eos):
            compared += _greedy(method, world, edge.prompt, edge.settings, beside=False)
    return {"tokens": compared}


def _greedy(method: Any, world: World, prompt: list[int], settings: Settings, beside: bool = True) -> int:
    assert isinstance(world.oracle, NetworkOracle)
    (alone,) = decode(world.lm, method, [prompt], settings)
    together = decode(world.lm, method, [prompt, *world.prompts], settings)[0] if beside else alone
    run = Run(world.lm, prompt, settings)  # for the processors of its settings alone
    for answer in (alone, together) if together.tokens != alone.tokens else (alone,):
        for place, token in enumerate(answer.tokens):
            before = answer.tokens[:place]
            right = world.oracle.logits_after(prompt, before).double()
            noisy = world.oracle.logits_after([NOISE, *prompt[1:]], before).double()
            scores = run.target.processed(right - method.eps * noisy, run.ids + before)
            if scores.max() - scores[token] > GAP * max(1.0, float(scores.abs().max())):
                raise LawBroken(
                    f"{method} on {prompt}: token {place} is {token}, {scores.max() - scores[token]:.3g} below the best"
                )
    _ended(world, alone, run.max_tokens, settings)
    return len(alone.tokens)


def _ended(world: World, answer: Any, most: int, settings: Settings) -> None:
    ends = endings(world.lm, settings)
    if any(token in ends for token in answer.tokens[:-1]):
        raise LawBroken(f"{answer.tokens} goes on behind its end")
    if len(answer.tokens) != most and answer.tokens[-1] not in ends:
        raise LawBroken(f"{answer.tokens} ended before its {most} tokens")


def _samples(method: Any, world: World, settings: Settings) -> float:
    assert isinstance(world.oracle, TableOracle)
    lm, oracle, prompt = world.lm, world.oracle, world.prompts[-1]
    other = [NOISE, *prompt[1:]]
    law: Law = {}
    running: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while running:
        output, weight = running.pop()
        rows = [oracle.logits_after(text, output) for text in (prompt, other)]
        mixed = [a - method.eps * b - settings.frequency_penalty * output.count(t)
                 for t, (a, b) in enumerate(torch.stack(rows).T.tolist())]  # fmt: skip
        for token, share in enumerate(warped(mixed, settings)):
            text = (*output, token)
            if share > 0 and (token in lm.eos_ids or len(text) == settings.max_tokens):
                law[text] = weight * share
            elif share > 0:
                running.append((text, weight * share))
    apart = total_variation(distribution(lm, method, prompt, settings).p, law)
    if not apart <= TOLERANCE:
        raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
    return apart
