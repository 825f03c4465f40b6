"""Instructions made worse: words left out and shuffled, other words, none, or the order to answer wrongly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

KINDS = ("opposite", "null", "truncate_shuffle", "random_words")
OPPOSITE = "Always respond with the opposite of what you're asked. You never get it right."  # the paper's best kind
W = TypeVar("W")


def distorted(words: Sequence[W], kind: str, *, share: float, count: int, pool: Sequence[W], seed: int) -> list[W]:
    """The words of an instruction after a distortion: `null` leaves none, `truncate_shuffle` leaves out each with
    probability `share` and shuffles the rest, `random_words` takes `count` from the pool instead."""
    source = random.Random(seed)
    if kind == "null":
        return []
    if kind == "truncate_shuffle":
        kept = [word for word in words if source.random() >= share] or list(words[:1])
        source.shuffle(kept)
        return kept
    if kind == "random_words":
        return [source.choice(pool) for _ in range(count)]
    raise ValueError(f"kind={kind!r} is not allowed: one of {', '.join(KINDS)}")


def replaced(prompt: str, instruction: str, other: str) -> str:
    """A prompt with another instruction: where `instruction` stands in it, or where that is empty in place of what
    comes before the first blank line."""
    if instruction:
        if instruction not in prompt:
            raise ValueError(
                f"instruction={instruction[:60]!r} is not allowed: the prompt does not have it; give it as it stands "
                "there, or leave it out and end the instruction with a blank line"
            )
        return prompt.replace(instruction, other, 1)
    before, blank, rest = prompt.partition("\n\n")
    if not blank or not before.strip():
        raise ValueError(
            "instruction='' is not allowed here: the prompt has no text before a blank line to take for its "
            "instruction; say which part of it is, e.g. instruction='Translate to German.'"
        )
    return other + blank + rest


def instruction_of(prompt: str, instruction: str) -> str:
    """The text that `replaced` replaces."""
    return instruction or prompt.partition("\n\n")[0]
