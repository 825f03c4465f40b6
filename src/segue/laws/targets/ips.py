"""The target of isotropic and proximal search: the published score, with the whole dialogue read anew for every
candidate."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import TableOracle, endings, room
from segue.laws.same_tokens import SMALL_BATCH, same_tokens
from segue.laws.states import States
from segue.laws.warped import softmax
from segue.laws.worlds import World
from segue.models.engine import Engine
from segue.models.run import Run

TOKENS = 8
CLOSE = 1e-4  # of scores, whose states are float32
TOLERANCE = 1e-6


def hold(method: Any, world: World) -> dict[str, float]:
    """With the probability alone (and with one candidate) it is transformers' greedy decoding, edges included; else
    every candidate of every step scores what the published formula gives, alone and in a batch, and the best is taken.
    On a table also the law of draws."""
    compared = 0
    free = replace(method, alpha=1.0)
    for plain in (free, replace(method, m=1)):
        compared += same_tokens(plain, world.lm, world.oracle, world.prompts, Settings(max_tokens=TOKENS)).tokens
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        with ending_at(world.lm, edge.eos):
            compared += same_tokens(free, world.lm, world.oracle, [edge.prompt], edge.settings, batch=False).tokens
    states = States(world)
    for form, settings in (
        (method, Settings(max_tokens=TOKENS)),
        (replace(method, alpha=0.2, m=7, start=0), Settings(max_tokens=TOKENS, repetition_penalty=1.3)),
    ):
        for prompt in world.prompts:
            marks = tuple(sorted({prompt[0], prompt[len(prompt) // 2]}))
            compared += _compare(replace(form, eou=marks, show=True), world, prompt, settings, states)
    alone = replace(method, show=True)  # without an utterance before it, unless a model's own ends are in the prompt
    compared += _compare(alone, world, world.prompts[1], Settings(max_tokens=TOKENS), states)
    if isinstance(world.oracle, TableOracle):
        forms = (replace(method, drawn=True, start=1, alpha=0.5), replace(method, m=2, alpha=0.3))
        return {"tokens": compared, "total variation": max(_law(form, world, states) for form in forms)}
    return {"tokens": compared}


def _compare(method: Any, world: World, prompt: list[int], settings: Settings, states: States) -> int:
    (alone,) = decode(world.lm, method, [prompt], settings)
    together = decode(world.lm, method, [prompt, *world.prompts], settings, engine=Engine(token_budget=SMALL_BATCH))
    most = room(world.lm, prompt, settings)
    if len(alone.tokens) != most and alone.tokens[-1] not in world.lm.eos_ids:
        raise LawBroken(f"{method} on {prompt}: {len(alone.tokens)} tokens, where {most} were asked for")
    formula = functools.cache(lambda output: naive(method, world, prompt, output, settings, states))
    compared = 0
    for answer in (alone, together[0]):
        if answer.trace[0] != {"utterances": len(ends_of(method, world, prompt))}:
            raise LawBroken(f"{method} on {prompt}: {answer.trace[0]} by {method.eou}")
        for place, token in enumerate(answer.tokens):
            p, scores = formula(tuple(answer.tokens[:place]))
            compared += len(scores)
            if place < method.start:
                if p[token] < max(p.values()) - CLOSE:
                    raise LawBroken(f"{method} on {prompt}: token {place} is not the likeliest")
                continue
            seen = answer.trace[1 + place - method.start]
            found = dict(zip(seen["tokens"], seen["scores"], strict=True))
            wrong = [v for v in found if v not in scores or abs(found[v] - scores[v]) > CLOSE]
            # Two that are equally likely may change places at the last of the m.
            if len(found) != len(scores) or any(v in scores or p[v] < min(p[w] for w in scores) - CLOSE for v in wrong):
                raise LawBroken(f"{method} on {prompt}, token {place}: {found} where the formula gives {scores}")
            if token not in found or found[token] < max(found.values()):
                raise LawBroken(f"{method} on {prompt}: token {place} is {token}, which is not the best of {found}")
    return compared


def ends_of(method: Any, world: World, prompt: Sequence[int]) -> list[int]:
    """Tokens that end an utterance of at least one other token."""
    marks = method.eou or world.lm.eos_ids
    return [i for i, token in enumerate(prompt) if token in marks and i > 0 and prompt[i - 1] not in marks]


def naive(
    method: Any, world: World, prompt: list[int], output: Sequence[int], settings: Settings, states: States
) -> tuple[dict[int, float], dict[int, float]]:
    """The probability of every token that may come next, and the score of every candidate."""
    run = Run(world.lm, prompt, settings)
    row = run.target.processed(world.oracle.logits_after(prompt, output), [*run.ids, *output]).double().softmax(-1)
    p = {token: share for token, share in enumerate(row.tolist()) if share > 0}
    scores = {}
    for v in sorted(p, key=lambda token: -p[token])[: method.m]:
        text = states.after(prompt, [*output, v])[-1].double()
        said = states.of_source(prompt).double() if world.lm.start_ids else text
        answer = text[run.prompt_length :]
        prox = [cosine(answer[-1], h) for h in answer[:-1]]
        iso = [cosine(answer.mean(0), said[place]) for place in ends_of(method, world, prompt)]
        scores[v] = method.alpha * p[v] + (1 - method.alpha) * (mean(prox) - mean(iso))
    return p, scores


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _law(method: Any, world: World, states: States) -> float:
    """Draws by softmax(score) and, where the request is sampled, of the first tokens among the m likeliest."""
    prompt, largest = world.prompts[-1], 0.0
    method = replace(method, eou=(prompt[1],))
    for settings in (Settings(max_tokens=3), Settings(max_tokens=3, temperature=0.7)):
        law: Law = defaultdict(float)
        running: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while running:
            output, weight = running.pop()
            for token, share in _shares(method, world, prompt, output, settings, states).items():
                text = (*output, token)
                if token in endings(world.lm, settings) or len(text) == settings.max_tokens:
                    law[text] += weight * share
                else:
                    running.append((text, weight * share))
        apart = total_variation(distribution(world.lm, method, prompt, settings).p, law)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest


def _shares(
    method: Any, world: World, prompt: list[int], output: Sequence[int], settings: Settings, states: States
) -> dict[int, float]:
    p, scores = naive(method, world, prompt, output, settings, states)
    values = scores
    if len(output) < method.start:
        total = sum(p[v] for v in scores)
        if settings.temperature:
            return {v: p[v] / total for v in scores}
        values = p
    elif method.drawn:
        return dict(zip(scores, softmax(list(scores.values())), strict=True))
    return {max(values, key=lambda v: values[v]): 1.0}
