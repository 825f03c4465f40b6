"""SameTarget: output follows a declared distribution other than the model's, held to a brute force written here.

Each target is one plain loop over the scores of whole texts, by full forwards of the models involved (or by look-up in
enumerable ones), without drafts, trees or caches. Targets of whole texts have files of their own in laws/targets, each
with `hold(method, world)`, which gives how many tokens (texts, probabilities) were compared.
"""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segue.card import SameTarget
from segue.data import Settings
from segue.laws import targets
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle, room
from segue.laws.worlds import World, oracle_of
from segue.models.lm import LM
from segue.models.run import Run

Text = tuple[Sequence[int], Sequence[int]]  # prompt and output
Row = Callable[[LM, Text], list[float]]  # logits after a text
TOKENS, GAP = 16, 1e-4
TOLERANCE = 1e-6  # of the law of samples: the method's rows are float32
SAMPLED = (Settings(temperature=1.0, max_tokens=3), Settings(temperature=0.7, top_k=2, max_tokens=3))


def same_target(promise: SameTarget, method: Any, world: World) -> dict[str, float]:
    """Greedy output on a network, or the exact law of samples on a table; returns what was compared."""
    scores_of = TARGETS.get(promise.target)
    if scores_of is None:
        if promise.target not in (module.name for module in pkgutil.iter_modules(targets.__path__)):
            raise LawBroken(f"no brute force is written for the target {promise.target!r}: add it to laws/targets")
        law = importlib.import_module(f"{targets.__name__}.{promise.target}")
        held: dict[str, float] = law.hold(method, world)
        return held
    if isinstance(world.oracle, TableOracle):
        return {"total variation": _samples(scores_of, method, world)}
    return {"tokens": _greedy(scores_of, method, world)}


def contrastive(method: Any, lm: LM, text: Text, row: Row) -> list[float]:
    """Contrastive scores after a text, from the rows of expert and amateur (Li et al. 2023; O'Brien and Lewis 2023)."""
    expert, amateur = row(lm, text), row(method.draft, text)
    log_e, log_a = _log_softmax(expert), _log_softmax(amateur)
    scores = []
    for w in range(len(expert)):
        out = method.alpha > 0 and math.exp(log_e[w]) < method.alpha * math.exp(max(log_e)) * (1 - 1e-12)
        improved = expert[w] + method.beta * (expert[w] - amateur[w])
        scores.append(-math.inf if out else improved if method.form == "improved" else log_e[w] - log_a[w])
    return scores


TARGETS: dict[str, Callable[[Any, LM, Text, Row], list[float]]] = {"contrastive": contrastive}


def _greedy(scores_of: Callable[..., list[float]], method: Any, world: World) -> float:
    oracles: dict[int, NetworkOracle] = {}

    def row(lm: LM, text: Text) -> list[float]:
        if id(lm) not in oracles:
            oracles[id(lm)] = oracle_of(lm)
        found: list[float] = oracles[id(lm)].logits_after(*text).tolist()
        return found

    settings = Settings(max_tokens=TOKENS, ignore_eos=True)
    alone = [decode(world.lm, method, [prompt], settings)[0].tokens for prompt in world.prompts]
    together = [answer.tokens for answer in decode(world.lm, method, world.prompts, settings)]
    compared = 0
    for prompt, *answers in zip(world.prompts, alone, together, strict=True):
        _ends(method, world.lm, prompt, answers[0], settings)
        processed = _processed(world.lm, prompt, settings)
        for tokens in answers:
            for place, token in enumerate(tokens):
                raw = scores_of(method, world.lm, (prompt, tokens[:place]), row)
                scores = processed(torch.tensor(raw), tokens[:place])
                if max(scores) - scores[token] > GAP * max(1.0, abs(max(scores))):
                    raise LawBroken(
                        f"{method}: token {place} is {token}, whose score is "
                        f"{max(scores) - scores[token]:.3g} below the best of its target"
                    )
                compared += 1
    return compared


def _processed(lm: LM, prompt: list[int], settings: Settings) -> Callable[[Tensor, list[int]], list[float]]:
    """What a model's own configuration forces or forbids (an encoder-decoder's may), by transformers' processors."""
    run = Run(lm, prompt, settings)

    def process(scores: Tensor, output: list[int]) -> list[float]:
        found: list[float] = run.target.processed(scores, run.ids + output).tolist()
        return found

    return process


def _ends(method: Any, lm: LM, prompt: list[int], tokens: list[int], settings: Settings) -> None:
    """The answer is as long as it may be, and ends behind a stop token wherever that comes."""
    if len(tokens) != room(lm, prompt, settings):
        raise LawBroken(f"{method}: {len(tokens)} tokens, where {room(lm, prompt, settings)} were asked for")
    for end in set(tokens):
        stopped = replace(settings, stop_tokens=(end,))
        (answer,) = decode(lm, method, [prompt], stopped)
        if answer.tokens != tokens[: tokens.index(end) + 1]:
            raise LawBroken(
                f"{method}: with {end} as the end {answer.tokens} was written instead of a part of {tokens}"
            )


def _samples(scores_of: Callable[..., list[float]], method: Any, world: World) -> float:
    """The largest total variation between the method's enumerated law and the target's own."""
    other: Any = copy.copy(world.lm)

    def row(lm: Any, text: Text) -> list[float]:
        found: list[float] = lm.logits_after([*text[0], *text[1]]).tolist()
        return found

    other.logits_after = lambda text: torch.tensor(scores_of(method, world.lm, (text, ()), row), dtype=torch.float64)
    largest = 0.0
    for settings in SAMPLED:
        seen = distribution(world.lm, method, world.prompts[-1], settings)
        law = TableOracle(other).law(world.prompts[-1], settings)
        apart = total_variation(seen.p, law)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        if not (seen.accepting and seen.refusing):
            raise LawBroken(f"{method}: no branch kept (or none refused) a drafted token: nothing was put to the test")
        largest = max(largest, apart)
    return largest


def _log_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    total = largest + math.log(sum(math.exp(x - largest) for x in row))
    return [x - total for x in row]
