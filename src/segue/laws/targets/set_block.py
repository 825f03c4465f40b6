"""The target of set block decoding: block by block from full forwards with masks written out, no caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle, room
from segue.laws.together import logits_together
from segue.laws.warped import warped
from segue.laws.worlds import World

FORMS: tuple[dict[str, Any], ...] = (
    {"block": 0},
    {"block": 1},
    {"block": 3, "gamma": 0.0},
    {"block": 3, "gamma": 1.0},
    {"block": 3, "gamma": 99.0},
)
TOLERANCE = 1e-6
SAMPLED = (Settings(temperature=1.0, max_tokens=4), Settings(temperature=0.7, top_k=2, max_tokens=4))
MASK = 0
Filled = tuple[int | None, ...]


def hold(method: Any, world: World) -> dict[str, float]:
    """Greedy texts on a network, the law of samples on a table; at block=0 they are plain decoding's."""
    forms = [replace(method, mask=MASK, **form) for form in FORMS]
    if isinstance(world.oracle, TableOracle):
        return {"total variation": max(_samples(form, world, settings) for form in forms for settings in SAMPLED)}
    settings = Settings(max_tokens=13, ignore_eos=True)
    compared = 0
    for form in forms:
        together = decode(world.lm, form, world.prompts, settings)
        for prompt, answer in zip(world.prompts, together, strict=True):
            (alone,) = decode(world.lm, form, [prompt], settings)
            expected, calls = _greedy(form, world, prompt, settings)
            for found in (alone, answer):
                if found.tokens != expected:
                    raise LawBroken(f"{form} on {prompt}: {found.tokens} instead of {expected}")
            if alone.stats.target_forwards - alone.stats.prefill_forwards != calls:
                raise LawBroken(f"{form} on {prompt}: {alone.stats.target_forwards} forwards, where {calls} suffice")
            compared += len(expected)
    return {"tokens": compared}


def _rows(world: World, prompt: Sequence[int], text: Sequence[int], block: Filled) -> list[Tensor]:
    """The row of every place of a block behind a text."""
    known = [MASK if token is None else token for token in block]
    if isinstance(world.oracle, NetworkOracle):
        return list(logits_together(world.oracle, [*prompt, *text], known))
    return [world.oracle.logits_after(prompt, [*text, *known[: place + 1]]) for place in range(len(known))]


def _chosen(rows: list[Tensor], block: Filled, gamma: float) -> list[int]:
    """Places that are revealed: every prefix of the masks by entropy is tried."""
    hidden = [place for place, token in enumerate(block) if token is None]
    entropy = {}
    for place in hidden:
        logp = rows[place].float().log_softmax(-1)
        entropy[place] = float(-(logp.exp() * logp).nansum())
    hidden.sort(key=lambda place: entropy[place])
    best = hidden[:1]
    for size in range(2, len(hidden) + 1):
        values = [entropy[place] for place in hidden[:size]]
        if sum(values) - max(values) <= gamma:
            best = hidden[:size]
    return best


def _greedy(method: Any, world: World, prompt: list[int], settings: Settings) -> tuple[list[int], int]:
    most = room(world.lm, prompt, settings)
    text, calls = [int(world.oracle.logits_after(prompt, []).argmax())], 0
    while len(text) < most:
        if method.block == 0:
            text.append(int(world.oracle.logits_after(prompt, text).argmax()))
            calls += 1
            continue
        block: list[int | None] = [None] * min(method.block, most - len(text))
        while None in block:
            rows = _rows(world, prompt, text, tuple(block))
            calls += 1
            for place in _chosen(rows, tuple(block), method.gamma):
                block[place] = int(rows[place].argmax())
        text += [token for token in block if token is not None]
    return text, calls


def _samples(method: Any, world: World, settings: Settings) -> float:
    assert isinstance(world.oracle, TableOracle)
    lm, prompt, most = world.lm, world.prompts[-1], settings.max_tokens
    law: Law = defaultdict(float)

    def close(text: tuple[int, ...]) -> tuple[int, ...] | None:
        """The text as it is given out, if it is over."""
        end = next((i for i, token in enumerate(text) if token in lm.eos_ids), None)
        return text[: end + 1] if end is not None else text if len(text) >= most else None

    def fill(text: tuple[int, ...], block: Filled, weight: float) -> None:
        if (over := close(text)) is not None:
            law[over] += weight
            return
        if not block:
            block = (None,) * min(method.block, most - len(text))
        if None not in block:
            fill((*text, *(token for token in block if token is not None)), (), weight)
            return
        rows = _rows(world, prompt, text, block)
        ways: list[tuple[Filled, float]] = [(block, 1.0)]
        for place in _chosen(rows, block, method.gamma):
            shares = warped(rows[place].double().tolist(), settings)
            ways = [
                ((*filled[:place], token, *filled[place + 1 :]), w * share)
                for filled, w in ways
                for token, share in enumerate(shares)
                if share > 0
            ]
        for filled, share in ways:
            fill(text, filled, weight * share)

    first = warped(world.oracle.logits_after(prompt, []).double().tolist(), settings)
    if method.block == 0:
        law |= world.oracle.law(prompt, settings)
    else:
        for token, share in enumerate(first):
            if share > 0:
                fill((token,), (), share)
    apart = total_variation(distribution(lm, method, prompt, settings).p, law)
    if not apart <= TOLERANCE:
        raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
    return apart
