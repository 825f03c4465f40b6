"""The target of DoLa: the published formula on transformers' hidden states, in plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import TableOracle, room
from segue.laws.same_tokens import SMALL_BATCH, same_tokens
from segue.laws.states import States
from segue.laws.worlds import World
from segue.models.engine import Engine
from segue.models.run import Run

TOKENS = 8
GAP = 1e-4  # scores, and shares of the likeliest, closer than that count as equal: rounding of float32
LEVEL = 1e-6  # divergences closer than that count as equal
TOLERANCE = 1e-6  # of the law of samples
# What low and high are for the layers of these worlds, by transformers' rule.
BUCKETS = {(2, False): ([0], [1]), (2, True): ([1], [1]), (8, False): ([0, 2], [4, 6])}
SAMPLED = (
    Settings(temperature=1.0, max_tokens=3),
    Settings(temperature=0.7, top_k=2, max_tokens=3),
    Settings(temperature=1.3, max_tokens=3, min_tokens=2, frequency_penalty=0.5),
)


def hold(method: Any, world: World) -> dict[str, float]:
    """Where only the likeliest token is left it is transformers' greedy decoding; else every token is the best of the
    published formula, for all ways to name the layers, alone and in a batch, and on a table samples follow it."""
    alone = replace(method, relative_top=1.0)
    compared = same_tokens(alone, world.lm, world.oracle, world.prompts, Settings(max_tokens=TOKENS)).tokens
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        # Penalties and biases act on differences of log-probabilities here, so that other tokens come first.
        one = edge.settings
        if one.repetition_penalty == 1 and not one.presence_penalty and not one.logit_bias:
            with ending_at(world.lm, edge.eos):
                compared += same_tokens(alone, world.lm, world.oracle, [edge.prompt], one, batch=False).tokens
    states = States(world)
    penalised = Settings(max_tokens=TOKENS, repetition_penalty=1.2, min_tokens=TOKENS)
    for form, settings in (
        ({}, Settings(max_tokens=TOKENS)),
        ({"layers": "high", "relative_top": 0.01}, penalised),
        ({"layers": "0,1", "relative_top": 0.03}, Settings(max_tokens=TOKENS)),
    ):
        compared += _greedy(replace(method, **form), world, settings, states)
    if not isinstance(world.oracle, TableOracle):
        return {"tokens": compared}
    return {"tokens": compared, "total variation": _samples(method, world, states)}


def _greedy(method: Any, world: World, settings: Settings, states: States) -> int:
    alone = [decode(world.lm, method, [prompt], settings)[0].tokens for prompt in world.prompts]
    batch = decode(world.lm, method, world.prompts, settings, engine=Engine(token_budget=SMALL_BATCH))
    compared = 0
    for prompt, mine, other in zip(world.prompts, alone, batch, strict=True):
        if len(mine) != room(world.lm, prompt, settings) and mine[-1] not in world.lm.eos_ids:
            raise LawBroken(f"{method} on {prompt}: {len(mine)} tokens, where {settings.max_tokens} were asked for")
        run = Run(world.lm, prompt, settings)
        for tokens in (mine, other.tokens):
            for place, token in enumerate(tokens):
                ways = naive(method, world, prompt, tokens[:place], settings, states)
                ids = [*run.ids, *tokens[:place]]
                rows = [run.target.processed(torch.tensor(way), ids).tolist() for way in ways]
                if not any(row[token] > max(row) - GAP * max(1.0, abs(max(row))) for row in rows):
                    raise LawBroken(
                        f"{method} on {prompt}: token {place} is {token} with a score of {rows[0][token]:.6g}, and the "
                        f"published formula gives {rows[0].index(max(rows[0]))} with {max(rows[0]):.6g}"
                    )
                compared += 1
    return compared


def _samples(method: Any, world: World, states: States) -> float:
    """The largest total variation between the method's enumerated law and the formula's."""
    other: Any = copy.copy(world.lm)
    largest = 0.0
    prompt = world.prompts[-1]
    for settings in SAMPLED:

        def scores(text: list[int], settings: Settings = settings) -> Tensor:
            first, *_ = naive(method, world, prompt, text[len(prompt) :], settings, states)
            return torch.tensor(first, dtype=torch.float64)

        other.logits_after = scores
        law = TableOracle(other).law(prompt, settings)
        apart = total_variation(distribution(world.lm, method, prompt, settings).p, law)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest


def naive(
    method: Any, world: World, prompt: list[int], output: list[int], settings: Settings, states: States
) -> list[list[float]]:
    """The scores after some output; several where candidate layers are equally far from the last one."""
    q_last = _softmax(world.oracle.logits_after(prompt, output).tolist())
    apart, early = [], []
    for layer in _layers(method, world):
        q = _softmax(states.read_out(prompt, output, layer))
        m = [(a + b) / 2 for a, b in zip(q_last, q, strict=True)]
        apart.append((_kl(q_last, m) + _kl(q, m)) / 2)
        early.append(q)
    ends = world.lm.eos_ids if len(output) < settings.min_tokens else frozenset()
    best = max(q for token, q in enumerate(q_last) if token not in ends)
    found = []
    for divergence, q_early in zip(apart, early, strict=True):
        if divergence < max(apart) - LEVEL:
            continue
        for share in (method.relative_top * (1 + GAP), method.relative_top * (1 - GAP)):  # tokens at the very edge
            kept = [q >= share * best or q == best for q in q_last]
            pairs = zip(q_last, q_early, kept, strict=True)
            found.append([math.log(a) - math.log(b) if keep else -math.inf for a, b, keep in pairs])
    return found


def _layers(method: Any, world: World) -> list[int]:
    network = getattr(world.lm, "network", None)
    low, high = BUCKETS[world.lm.layers, network is not None and bool(network.config.tie_word_embeddings)]
    named = {"low": low, "high": high}
    return named[method.layers] if method.layers in named else [int(n) for n in method.layers.split(",")]


def _softmax(row: list[float]) -> list[float]:
    largest = max(row)
    masses = [math.exp(x - largest) for x in row]
    return [mass / sum(masses) for mass in masses]


def _kl(p: list[float], m: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, m, strict=True) if a > 0)
