"""Rewards: what an answer, or as much of it as there is, is worth. Larger is better.

lm                 mean log-probability of its tokens under the model that writes it; 0 where there are none yet
regex:PATTERN      how often the pattern occurs in it
classifier:PATH    a transformers sequence classifier that reads prompt and answer as one text (models/classifier.py);
                   classifier:PATH#LABEL is the log-probability of one of its labels
module:function    anybody's own, of a prompt and a list of texts; an object with `score(prompt, texts)` serves as well
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from segue.choose.parts.hypothesis import Hypothesis, prompt_words, words_of
from segue.choose.parts.utility import imported
from segue.models.run import Run

NAMES = ("lm", "regex:PATTERN", "classifier:PATH", "module:function")


@runtime_checkable
class Reward(Protocol):
    """Scores texts that answer a prompt, finished or not."""

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        """A finite number for each text."""
        ...


@dataclass(frozen=True)
class Regex:
    """How often a pattern occurs."""

    pattern: str

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        return [float(sum(1 for _ in re.finditer(self.pattern, text))) for text in texts]


@dataclass(frozen=True)
class Classified:
    """What a sequence classifier thinks of prompt and answer."""

    path: str
    label: str = ""

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        from segue.models.classifier import classifier

        return classifier(self.path)([prompt + text for text in texts], self.label)


@dataclass(frozen=True)
class Own:
    """A function `module:function`."""

    place: str

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        found: list[float] = imported(self.place)(prompt, texts)
        return found


@dataclass(frozen=True)
class Likelihood:
    """Mean log-probability under the model itself; of hypotheses, which know it, and not of texts."""

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        raise ValueError("'lm' scores what the model writes itself, and no other texts")


def named(reward: Any, field: str = "reward") -> Reward:
    """A reward from its name; ValueError with the nearest name where there is none."""
    if not isinstance(reward, str):
        if isinstance(reward, Reward):
            return reward
        raise ValueError(f"{field}={reward!r} is not allowed: a name, or an object with score(prompt, texts)")
    kind, _, rest = reward.partition(":")
    if reward == "lm":
        return Likelihood()
    if kind == "regex" and rest:
        try:
            re.compile(rest)
        except re.error as error:
            raise ValueError(f"{field}={reward!r} is no regular expression: {error}") from None
        return Regex(rest)
    if kind == "classifier" and rest:
        path, _, label = rest.partition("#")
        return Classified(path, label)
    if kind and rest:
        imported(reward)
        return Own(reward)
    near = difflib.get_close_matches(kind, [name.partition(":")[0] for name in NAMES], n=1, cutoff=0.5)
    meant = [name for name in NAMES if near and name.startswith(near[0])]
    raise ValueError(
        f"{field}={reward!r} is not known: " + (f"did you mean {meant[0]}?" if meant else ", ".join(NAMES))
    )


def scored(reward: Reward, prompt: str, texts: list[str], name: Any = None) -> list[float]:
    """Scores that are finite numbers, one for each text; ValueError otherwise."""
    found = [float(value) for value in reward.score(prompt, texts)]
    if len(found) != len(texts) or not all(map(math.isfinite, found)):
        raise ValueError(
            f"{name or reward!r} gave {found} for {len(texts)} texts: one finite number for each is needed"
        )
    return found


class Scorer:
    """A reward within one run. Every text is scored once, and counted then."""

    def __init__(self, run: Run, reward: Reward) -> None:
        self._run = run
        self._reward = reward
        self._prompt = prompt_words(run)
        self._known: dict[Any, float] = {}

    def of(self, hypotheses: Seq[Hypothesis]) -> list[float]:
        """A number for each text, as far as it is written."""
        if isinstance(self._reward, Likelihood):
            keys: list[Any] = [tuple(h.tokens) for h in hypotheses]
            fresh = {key: h.logp / max(len(h.tokens), 1) for key, h in zip(keys, hypotheses, strict=True)}
            new = {key: value for key, value in fresh.items() if key not in self._known}
        else:
            keys = [words_of(self._run, h.tokens) for h in hypotheses]
            texts = [text for text in dict.fromkeys(keys) if text not in self._known]
            new = dict(zip(texts, scored(self._reward, self._prompt, texts), strict=True)) if texts else {}
        self._run.stats.scorer_calls += len(new)
        self._known |= new
        return [self._known[key] for key in keys]
