"""The target of contrastive search: the published score, with every text read anew for every candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.oracle import room
from segue.laws.same_tokens import SMALL_BATCH, same_tokens
from segue.laws.states import States
from segue.laws.worlds import World
from segue.models.engine import Engine
from segue.models.run import Run

TOKENS = 8
GAP = 1e-4  # scores closer than that count as equal: rounding of float32 states


def hold(method: Any, world: World) -> dict[str, float]:
    """With no penalty (and with one candidate) it is transformers' greedy decoding, edges included; with one, every
    token is the best of the published formula, whether prompts are read whole or in chunks beside each other."""
    compared = 0
    for plain in (replace(method, alpha=0.0), replace(method, k=1)):
        compared += same_tokens(plain, world.lm, world.oracle, world.prompts, Settings(max_tokens=TOKENS)).tokens
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        with ending_at(world.lm, edge.eos):
            free = replace(method, alpha=0.0)
            compared += same_tokens(free, world.lm, world.oracle, [edge.prompt], edge.settings, batch=False).tokens
    states = States(world)
    compared += _compare(method, world, Settings(max_tokens=TOKENS), states)
    penalised = Settings(max_tokens=TOKENS, repetition_penalty=1.3)
    compared += _compare(replace(method, alpha=0.9, k=6), world, penalised, states)
    return {"tokens": compared}


def _compare(method: Any, world: World, settings: Settings, states: States) -> int:
    alone = [decode(world.lm, method, [prompt], settings)[0].tokens for prompt in world.prompts]
    batch = decode(world.lm, method, world.prompts, settings, engine=Engine(token_budget=SMALL_BATCH))
    compared = 0
    for prompt, mine, other in zip(world.prompts, alone, batch, strict=True):
        if len(mine) != room(world.lm, prompt, settings) and mine[-1] not in world.lm.eos_ids:
            raise LawBroken(f"{method} on {prompt}: {len(mine)} tokens, where {settings.max_tokens} were asked for")
        for tokens in (mine, other.tokens):
            for place, token in enumerate(tokens):
                scores = naive(method, world, prompt, tokens[:place], settings, states)
                best = max(scores.values())
                if token not in scores or scores[token] < best - GAP:
                    raise LawBroken(
                        f"{method} on {prompt}: token {place} is {token}, whose score is {scores.get(token)} where the "
                        f"published formula has {best:.6g} for {max(scores, key=lambda t: scores[t])}"
                    )
                compared += 1
    return compared


def naive(
    method: Any, world: World, prompt: list[int], output: list[int], settings: Settings, states: States
) -> dict[int, float]:
    """The score of every candidate after some output, by the formula of the paper."""
    run = Run(world.lm, prompt, settings)
    row = run.target.processed(world.oracle.logits_after(prompt, output), [*run.ids, *output]).double()
    p = row.softmax(-1)
    found = {}
    for v in sorted(range(len(p)), key=lambda token: -float(p[token]))[: method.k]:
        if row[v] == float("-inf"):
            continue
        text = states.after(prompt, [*output, v])[-1].double()
        likeness = [float(torch.dot(text[-1], h) / (text[-1].norm() * h.norm())) for h in text[:-1]]
        found[v] = (1 - method.alpha) * float(p[v]) - method.alpha * max(likeness)
    return found
