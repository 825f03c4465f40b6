"""The target of CARDS: segments, thresholds, acceptance and the best of what was refused, written out for all draws.

On tables the law of the answer is compared with one that is summed over all segments and all refusals. On networks a
threshold below all rewards must give plain sampling with the same randomness, at one reward a segment, and every
segment must end where it may.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segue.data import Completion, Settings
from segue.decode.plain import Plain
from segue.laws.base import LawBroken, decode
from segue.laws.drawing import TOLERANCE, Text, answers, candidates_hold, edges_hold, sampled
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import TableOracle, endings
from segue.laws.warped import warped
from segue.laws.worlds import World

PLAIN: Any = Plain()
NEVER = -1e9  # a threshold that everything passes
BRANCHES = 200_000
SAMPLED = (
    Settings(max_tokens=2),  # greedy: sampled at the method's own temperature
    Settings(max_tokens=3, temperature=0.9, top_k=2, frequency_penalty=0.5),
)
KINDS: tuple[dict[str, Any], ...] = (
    {"unit": "whole", "least": 1, "tries": 1, "r_star": 1.0, "alpha": 1.0},
    {"unit": "whole", "least": 1, "tries": 2, "r_star": 0.5, "alpha": 0.5},
    {"unit": "entropy", "least": 1, "most": 2, "tau_u": 0.6, "tries": 1, "r_star": 1.5, "alpha": 0.25},
    {"unit": "token", "least": 1, "tries": 1, "r_star": 0.5, "alpha": 0.5},
    {"unit": "token", "least": 1, "tries": 2, "r_star": 0.5, "alpha": 0.5, "hard": True},
)


@dataclass(frozen=True)
class Counted:
    """A reward that can be counted by hand: how often token 1 comes, less half of how often token 0 does."""

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        return [worth([int(token) for token in text.split()]) for text in texts]


def worth(tokens: Sequence[int]) -> float:
    """The same of tokens."""
    return sum(1.0 if token == 1 else -0.5 if token == 0 else 0.25 for token in tokens)


def hold(method: Any, world: World) -> dict[str, float]:
    """The law on a table; the limit, the edges, ends of segments and candidates on a network. Raises LawBroken."""
    method = replace(method, reward=Counted(), beta=0.8)
    if isinstance(world.oracle, TableOracle):
        return {"total variation": max(_law(replace(method, **kind), world) for kind in KINDS)}
    compared = edges_hold(replace(method, r_star=3.0, tries=2, least=2), world)
    for settings in (Settings(max_tokens=12, temperature=1.0, seed=3), Settings(max_tokens=12, seed=5)):
        free = replace(method, r_star=NEVER, tau_u=2.5, least=2, most=5)
        for prompt, answer in answers(free, world, settings):
            (plain,) = decode(world.lm, PLAIN, [prompt], sampled(settings, method.temperature))
            if (answer.tokens, answer.finish_reason) != (plain.tokens, plain.finish_reason):
                raise LawBroken(f"{free} on {prompt}: {answer.tokens} instead of {plain.tokens} by plain sampling")
            if answer.stats.scorer_calls != 1 + len(answer.trace):
                raise LawBroken(f"{free}: {answer.stats.scorer_calls} rewards for {len(answer.trace)} segments")
            compared += len(answer.tokens) + _segments(free, world, prompt, answer)
        choosy = replace(method, r_star=2.0, tries=2, tau_u=2.5, least=2, most=5, samples=2)
        for prompt, answer in answers(choosy, world, settings):
            for candidate in candidates_hold(choosy, world, prompt, answer):
                if abs(candidate.score - worth(candidate.tokens)) > TOLERANCE:
                    raise LawBroken(f"{choosy} on {prompt}: {candidate} is worth {worth(candidate.tokens)}")
                compared += len(candidate.tokens)
    return {"tokens": compared}


def expected(method: Any, world: World, prompt: Sequence[int], settings: Settings) -> Law:
    """The law of the answer, segment by segment."""
    begin = (1 - method.alpha) * worth(()) + method.alpha * method.r_star
    slope = (method.r_star - begin) / settings.max_tokens
    found: Law = defaultdict(float)
    open_texts: list[tuple[Text, float]] = [((), 1.0)]
    while open_texts:
        text, weight = open_texts.pop()
        drawn = _drawn(method, world, prompt, settings, text)  # (text with a new segment, whether it ends) -> p
        keep = {}
        for new, _ in drawn:
            above = worth(new) - min(method.r_star, begin + len(new) * slope)
            keep[new] = float(above >= 0) if method.hard else min(1.0, math.exp(above / method.beta))
        after: Law = defaultdict(float)
        for refusals in range(method.tries + 1):
            for row in itertools.product(drawn, repeat=refusals + 1):
                p = math.prod(drawn[one] for one in row)
                p *= math.prod(1 - keep[new] for new, _ in row[:-1])
                if refusals < method.tries:
                    after[row[-1][0]] += p * keep[row[-1][0]]
                else:  # the best of all, the first of equal ones
                    after[max((new for new, _ in row), key=worth)] += p
        ends = dict(drawn.keys())
        for new, p in after.items():
            if p > 0 and ends[new]:
                found[new] += weight * p
            elif p > 0:
                open_texts.append((new, weight * p))
    return dict(found)


def _drawn(
    method: Any, world: World, prompt: Sequence[int], settings: Settings, text: Text
) -> dict[tuple[Text, bool], float]:
    """All segments behind a text with their probabilities, and whether they end it."""
    assert isinstance(world.oracle, TableOracle)
    found: dict[tuple[Text, bool], float] = defaultdict(float)
    growing: list[tuple[Text, float]] = [(text, 1.0)]
    while growing:
        before, weight = growing.pop()
        p = warped(world.oracle._scores([*prompt, *before], len(prompt), settings), settings)
        for token, share in enumerate(p):
            new = (*before, token)
            if share <= 0:
                continue
            if token in endings(world.lm, settings) or len(new) == settings.max_tokens:
                found[new, True] += weight * share
            elif _ends(method, world, prompt, new, len(new) - len(text)):
                found[new, False] += weight * share
            else:
                growing.append((new, weight * share))
    return dict(found)


def _ends(method: Any, world: World, prompt: Sequence[int], text: Sequence[int], length: int) -> bool:
    """Whether a segment of so many tokens ends behind a text that goes on."""
    if method.unit == "whole":
        return False
    if method.unit == "token" or length == method.most:
        return True
    logits = [float(x) for x in world.oracle.logits_after(prompt, text)]
    most = max(logits)
    total = math.fsum(math.exp(x - most) for x in logits)
    p = [math.exp(x - most) / total for x in logits]
    unsure = -math.fsum(x * math.log(x) for x in p if x > 0) >= method.tau_u
    return unsure and length >= int(method.least)


def _segments(method: Any, world: World, prompt: Sequence[int], answer: Completion) -> int:
    """Every segment of the trace ends where it may, and none of them should have ended before. Returns how many."""
    ends = [entry["tokens"] for entry in answer.trace]
    begin = 0
    for length in range(1, len(answer.tokens)):
        over = _ends(method, world, prompt, answer.tokens[:length], length - begin)
        if over != (length in ends):
            raise LawBroken(
                f"{method} on {prompt}: segments end at {ends}, and {length} is {'one' if over else 'none'}"
            )
        begin = length if over else begin
    return len(ends)


def _law(method: Any, world: World) -> float:
    prompt, largest = world.prompts[-1], 0.0
    for settings in SAMPLED:
        right = expected(method, world, prompt, sampled(settings, method.temperature))
        apart = total_variation(distribution(world.lm, method, prompt, settings, BRANCHES).p, right)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest
