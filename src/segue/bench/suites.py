"""Prompts to measure on: the suites that come with the package, and the user's own JSONL."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "suites"
NAMES = ("spec", "code", "translation", "long", "adversarial")
OTHERS = ("translation", "constrained", "load")  # not read here, but a mistyped name may mean them
RANDOM_PROMPTS, RANDOM_WORDS = 24, 60


@dataclass(frozen=True)
class Suite:
    """Prompts with their kinds. `temperature` is what the suite is about; the user may set another."""

    name: str
    kinds: list[str]
    prompts: list[str]
    temperature: float = 0.0
    says: str = ""


def suite(name: str, limit: int | None = None) -> Suite:
    """A suite by name or path; ValueError names the line that is wrong. `limit` takes evenly spaced prompts."""
    if name == "adversarial":
        prompts = _random_words()
        says = "random words, sampled at temperature 1: nothing can be guessed"
        return _limited(Suite(name, ["random words"] * len(prompts), prompts, 1.0, says), limit)
    path = place(name, NAMES)
    kinds, texts = [], []
    for number, record in records(path):
        text = record.get("prompt", record.get("text"))
        if not isinstance(text, str) or not text:
            raise ValueError(f'{path} line {number} has no "prompt" (a text that is not empty)')
        texts.append(text)
        kinds.append(str(record.get("kind", "prompts")))
    if not texts:
        raise ValueError(f"{path} holds no prompts")
    return _limited(Suite(path.stem, kinds, texts), limit)


def place(name: str, names: Sequence[str]) -> Path:
    """The file of a suite, or the user's own; ValueError where there is none."""
    path = FOLDER / f"{name}.jsonl" if name in names else Path(name)
    if not path.is_file():
        known = ", ".join(dict.fromkeys((*names, *OTHERS)))
        raise ValueError(f"no suite or file is called {name!r}: the suites are {known}, or give a JSONL file")
    return path


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines; ValueError names the line that is none."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not a JSON object: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path} line {number} is not a JSON object: it is {str(record)[:40]!r}")
        yield number, record


def spread(count: int, limit: int | None) -> list[int]:
    """Which of so many prompts `limit` takes, evenly spaced; all where it is None."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} is not allowed: at least 1")
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _limited(whole: Suite, limit: int | None) -> Suite:
    chosen = spread(len(whole.prompts), limit)
    kinds, prompts = [whole.kinds[i] for i in chosen], [whole.prompts[i] for i in chosen]
    return Suite(whole.name, kinds, prompts, whole.temperature, whole.says)


def _random_words() -> list[str]:
    """Pronounceable nonsense from a seeded source, the same on every machine."""
    source = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ix", "ol", "um")]

    def word() -> str:
        return "".join(source.choice(syllables) for _ in range(source.randint(1, 3)))

    return [" ".join(word() for _ in range(RANDOM_WORDS)) for _ in range(RANDOM_PROMPTS)]
