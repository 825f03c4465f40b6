"""The target of lexical unit decoding: token by token from full forwards over the text and its pads, no caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import TableOracle, room
from segue.laws.warped import warped
from segue.laws.worlds import World

BETAS = (0.0, 0.4, 0.9, 1.0)
TOLERANCE = 1e-6
SAMPLED = (Settings(temperature=1.0, max_tokens=4), Settings(temperature=0.7, top_k=2, max_tokens=4))
PAD = 0


def hold(method: Any, world: World) -> dict[str, float]:
    """Greedy texts on a network, the law of samples on a table; at beta=1 they are plain decoding's."""
    method = replace(method, mask=PAD, k=3)
    forms = [replace(method, beta=beta) for beta in BETAS]
    if isinstance(world.oracle, TableOracle):
        return {"total variation": max(_samples(form, world, settings) for form in forms for settings in SAMPLED)}
    settings = Settings(max_tokens=24, ignore_eos=True)
    compared, several = 0, 0
    for form in forms:
        together = decode(world.lm, form, world.prompts, settings)
        for prompt, answer in zip(world.prompts, together, strict=True):
            (alone,) = decode(world.lm, form, [prompt], settings)
            expected = _greedy(form, world, prompt, settings)
            for found in (alone, answer):
                if found.tokens != expected:
                    raise LawBroken(f"{form} on {prompt}: {found.tokens} instead of {expected}")
            compared += len(expected)
            several += alone.stats.target_forwards < len(expected)
    if not several:
        raise LawBroken(f"{method} never wrote two tokens in a forward: nothing was put to the test")
    return {"tokens": compared}


def _rows(method: Any, world: World, prompt: Sequence[int], text: Sequence[int], most: int) -> list[torch.Tensor]:
    """The rows of the last token and of the pads behind it."""
    pads = min(method.k, most) - 1
    return [world.oracle.logits_after(prompt, [*text, *[PAD] * j]) for j in range(pads + 1)]


def _greedy(method: Any, world: World, prompt: list[int], settings: Settings) -> list[int]:
    most = room(world.lm, prompt, settings)
    text = [int(world.oracle.logits_after(prompt, []).argmax())]
    while len(text) < most:
        first, *others = _rows(method, world, prompt, text, most - len(text))
        unit = [int(first.argmax())]
        for row in others:
            token = int(row.argmax())
            if float(row.softmax(-1)[token]) <= method.beta or token == unit[-1]:
                break
            unit.append(token)
        text += unit
    return text


def _samples(method: Any, world: World, settings: Settings) -> float:
    assert isinstance(world.oracle, TableOracle)
    lm, prompt = world.lm, world.prompts[-1]
    law: Law = defaultdict(float)

    def ended(text: tuple[int, ...]) -> bool:
        return len(text) == settings.max_tokens or (bool(text) and text[-1] in lm.eos_ids)

    def write(text: tuple[int, ...], unit: tuple[int, ...], rows: list[torch.Tensor], weight: float) -> None:
        """Everything that may follow when a unit of a forward's rows is under way."""
        whole = (*text, *unit)
        if unit and ended(whole):
            law[whole] += weight
            return
        if len(unit) == len(rows):
            write(whole, (), _rows(method, world, prompt, whole, settings.max_tokens - len(whole)), weight)
            return
        row = rows[len(unit)].double()
        for token, share in enumerate(warped(row.tolist(), settings)):
            if share == 0:
                continue
            sure = float(row.float().softmax(-1)[token])
            if unit and (sure <= method.beta or token == unit[-1]):
                write(whole, (), _rows(method, world, prompt, whole, settings.max_tokens - len(whole)), weight * share)
            else:
                write(text, (*unit, token), rows, weight * share)

    write((), (), [world.oracle.logits_after(prompt, [])], 1.0)
    apart = total_variation(distribution(lm, method, prompt, settings).p, law)
    if not apart <= TOLERANCE:
        raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
    if method.beta == 1:
        plain = total_variation(law, world.oracle.law(prompt, settings))
        if not plain <= TOLERANCE:
            raise LawBroken(f"{method} at beta=1 is {plain:.3g} from the model's own law")
    return apart
