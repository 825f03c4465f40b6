"""What the clients of a load ask: mixed methods and lengths, with the answer that is known beforehand where a greedy
request has only one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from segue.api import Model, Prompt
from segue.bench.suites import suite
from segue.data import Completion
from segue.models.lm import LM

METHODS = ("plain", "auto", "prompt_lookup", "token_recycling", "lookahead")
REGEX = "[A-Z][a-z ]{0,60}"  # satisfied by its first token, so that answers may be as short as anybody asks
LENGTHS = (1.0, 0.5, 0.25)  # of an answer, in shares of the longest
HURRY = 0.05  # seconds of a deadline that a busy server misses
# Shares of a mixed load; what is left is greedy or sampled text by one of the methods.
LEAVING, HURRIED, WRONG, PREDICTED, CONSTRAINED, SAMPLED = 0.05, 0.04, 0.03, 0.08, 0.07, 0.2
WRONGS: tuple[dict[str, Any], ...] = (
    {"temperature": -1},
    {"max_tokens": 10**9},
    {"method": "nonesuch"},
    {"prompt": []},
    {"unheard_of": 1},
)


@dataclass(frozen=True)
class Known:
    """The answer of plain greedy decoding without a server."""

    text: str
    tokens: int
    starts: tuple[str, ...]  # the text of the first i tokens
    gaps: tuple[float, ...]  # by how much each token led, in logits; empty where a constraint chose
    seconds: tuple[str, ...] = ()  # the text with the token that came second in place of the last

    def gap(self, text: str) -> float | None:
        """By how much plain decoding's token led where another text departs from it; None where that is not known."""
        for place, gap in enumerate(self.gaps):
            if not text.startswith(self.starts[place + 1].rstrip("\ufffd")) or self._took_second(text, place):
                return gap
        return None

    def _took_second(self, text: str, place: int) -> bool:
        """Whether another text goes on with the second token, which begins like the one that led."""
        second = self.seconds[place] if self.seconds else ""
        longer = second.startswith(self.starts[place + 1]) and second != self.starts[place + 1]
        return longer and text.startswith(second) and not self.text.startswith(second)


@dataclass(frozen=True)
class Question:
    """One request."""

    kind: str  # under which it is reported
    body: dict[str, Any]  # of /v1/completions, without the model's name
    known: Known | None = None
    stream: bool = False
    leaves: float | None = None  # seconds after which the client goes away
    statuses: tuple[int, ...] = (200,)  # that are right


@dataclass(frozen=True)
class Asking:
    """A prompt with its longest answer, and what plain decoding says."""

    prompt: list[int]
    max_tokens: int
    free: Known
    constrained: Known | None


def texts(lm: LM, limit: int, max_tokens: int) -> list[list[int]]:
    """Prompts from a few tokens to all that the context has room for, the longest every fourth."""
    room = lm.longest_prompt(max_tokens)
    short = [lm.encode(prompt)[-room:] for prompt in suite("spec", max(limit - limit // 4, 1)).prompts]
    long = [lm.encode(prompt) for prompt in suite("long", min(max(limit // 4, 1), 12)).prompts]
    ranks = [room * (i + 1) // len(long) for i in range(len(long))]
    return [*short, *(prompt[: min(rank, 8192)] for prompt, rank in zip(long, ranks, strict=True))]


def askings(
    model: Model, prompts: Sequence[list[int]], max_tokens: int, progress: Callable[[int, int], None]
) -> list[Asking]:
    """Answer every prompt offline, once as it is and, where grammars are installed, once under a constraint."""
    constrain = find_spec("llguidance") is not None
    found = []
    for number, prompt in enumerate(prompts):
        progress(number, len(prompts))
        most = max(int(max_tokens * LENGTHS[number % len(LENGTHS)]), 1)
        free = known(model, prompt, max_tokens=most, logprobs=2)
        # A constraint chooses among tokens that need not be the likeliest: nothing is known of near ties then.
        bound = known(model, prompt, max_tokens=most, regex=REGEX) if constrain else None
        found.append(Asking(prompt, most, free, bound))
    progress(len(prompts), len(prompts))
    return found


def known(model: Model, prompt: Prompt, **settings: Any) -> Known:
    """What plain decoding answers."""
    said: Completion = model.generate(prompt, "plain", **settings)
    tops = [detail.top for detail in said.logprobs or []]
    starts = tuple(model.lm.decode(said.tokens[:i]) for i in range(len(said.tokens) + 1))
    others = [next(i for i, _ in top if i != token) for top, token in zip(tops, said.tokens, strict=bool(tops))]
    seconds = tuple(model.lm.decode([*said.tokens[:place], other]) for place, other in enumerate(others))
    return Known(said.text, len(said.tokens), starts, tuple(top[0][1] - top[1][1] for top in tops), seconds)


@dataclass
class Mix:
    """An endless source of questions, the same for the same seed."""

    askings: Sequence[Asking]
    methods: Sequence[str]
    source: random.Random

    def draw(self) -> Question:
        question = self._leaving(self._question())
        stream = self.source.random() < 0.5
        return replace(question, stream=stream and question.statuses == (200,))

    def _leaving(self, question: Question) -> Question:
        if question.statuses != (200,) or self.source.random() >= LEAVING:
            return question
        return replace(question, kind="leaves early", known=None, leaves=self.source.uniform(0.01, 0.5))

    def _question(self) -> Question:
        asking = self.source.choice(self.askings)
        body: dict[str, Any] = {"prompt": asking.prompt, "max_tokens": asking.max_tokens, "temperature": 0}
        place = self.source.random()
        for share, make in (
            (HURRIED, self._hurried),
            (WRONG, self._wrong),
            (PREDICTED, self._predicted),
            (CONSTRAINED if asking.constrained else 0.0, self._constrained),
            (SAMPLED, self._sampled),
        ):
            if place < share:
                return make(asking, body)
            place -= share
        method = self.source.choice(self.methods)
        return Question(method, body | {"method": method}, asking.free)

    def _hurried(self, _: Asking, body: dict[str, Any]) -> Question:
        return Question("deadline", body | {"deadline": HURRY}, statuses=(200, 504))

    def _wrong(self, _: Asking, body: dict[str, Any]) -> Question:
        return Question("wrong request", body | self.source.choice(WRONGS), statuses=(400,))

    def _predicted(self, asking: Asking, body: dict[str, Any]) -> Question:
        """The text that comes, with a piece of it missing."""
        text = asking.free.text
        cut = self.source.randrange(max(len(text), 1))
        return Question("prediction", body | {"prediction": {"content": text[:cut] + text[cut + 8 :]}}, asking.free)

    def _constrained(self, asking: Asking, body: dict[str, Any]) -> Question:
        method = self.source.choice(self.methods)
        return Question("constrained", body | {"regex": REGEX, "method": method}, asking.constrained)

    def _sampled(self, _: Asking, body: dict[str, Any]) -> Question:
        heat = {"temperature": 0.8, "top_p": 0.95, "seed": self.source.randrange(2**31)}
        return Question("sampled", body | heat | {"method": self.source.choice(self.methods)})
