"""All branches of a method's randomness, walked one after the other, so that its output law is known exactly.

1. Run the method with a chance that takes the first branch everywhere and notes how many there were.
2. Take the last choice that has a branch left, move it on, forget the choices behind it, and replay.
3. A replay's weight is the product of the probabilities of its branches; when no branch is left they sum to 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from segue.data import Settings
from segue.laws.base import Kept, LawBroken, decode
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method

T = TypeVar("T")
Law = dict[tuple[int, ...], float]  # output tokens -> probability


class TooManyBranches(ValueError):
    """The enumeration is larger than was allowed."""


class ScriptedChance:
    """A `Chance` that follows a script of branch numbers, and takes the first branch behind its end."""

    def __init__(self, script: Sequence[tuple[int, int]] = ()) -> None:
        self.weight = 1.0  # probability of the branches taken
        self.taken: list[tuple[int, int]] = []  # (branch, how many there were) of every choice
        self._script = script

    def index(self, p: Tensor) -> int:
        """Branches over every token of positive probability."""
        mass = p.detach().to("cpu", torch.float64).tolist()
        total = sum(mass)
        if not total > 0 or min(mass) < 0:
            raise LawBroken(f"a token was to be drawn from {mass}, which is no distribution")
        return self._take([(token, m / total) for token, m in enumerate(mass) if m > 0])

    def keeps(self, p: float, q: float) -> bool:
        """Branches over True with probability min(1, p / q), and False."""
        if not (p >= 0 and q >= 0):
            raise LawBroken(f"a token was to be kept with probability {p} / {q}")
        chance = 0.0 if p == 0 else min(1.0, p / q) if q > 0 else 1.0
        return self._take([(answer, c) for answer, c in ((True, chance), (False, 1 - chance)) if c > 0])

    def following(self) -> list[tuple[int, int]] | None:
        """The script of the next branch, or None after the last."""
        script = list(self.taken)
        while script:
            branch, count = script.pop()
            if branch + 1 < count:
                return [*script, (branch + 1, count)]
        return None

    def _take(self, options: list[tuple[T, float]]) -> T:
        place = len(self.taken)
        branch, count = self._script[place] if place < len(self._script) else (0, len(options))
        if count != len(options):
            raise LawBroken(
                f"a replay met {len(options)} branches where there were {count}: the method keeps state between "
                "requests that was not put back, or draws from another source than the run's chance"
            )
        self.taken.append((branch, count))
        value, probability = options[branch]
        self.weight *= probability
        return value


def walk(play: Callable[[ScriptedChance], T], most: int = 20_000) -> Iterator[tuple[float, T]]:
    """What `play` gives in each of its branches, with that branch's probability."""
    script: list[tuple[int, int]] | None = []
    for _ in range(most):
        assert script is not None
        chance = ScriptedChance(script)
        result = play(chance)
        yield chance.weight, result
        script = chance.following()
        if script is None:
            return
    raise TooManyBranches(f"more than {most} branches: use fewer tokens or a smaller vocabulary")


@dataclass(frozen=True, slots=True)
class Enumerated:
    """The exact law of a method's output, and what its branches did."""

    p: Law
    branches: int
    accepting: int  # branches in which a drafted token was kept
    refusing: int  # branches in which one was refused


def distribution(lm: LM, method: Method, prompt: Sequence[int], settings: Settings, most: int = 20_000) -> Enumerated:
    """Replay one request until every branch is visited. What drafters keep is as it is now before each replay."""
    kept = Kept(lm)
    engine = Engine()

    def play(chance: ScriptedChance) -> tuple[tuple[int, ...], bool, bool]:
        kept.restore()
        (answer,) = decode(lm, method, [prompt], settings, source=chance, engine=engine)
        stats = answer.stats
        return tuple(answer.tokens), stats.accepted > 0, sum(stats.offered) > sum(stats.kept)

    p: Law = defaultdict(float)
    branches = accepting = refusing = 0
    for weight, (tokens, accepted, refused) in walk(play, most):
        p[tokens] += weight
        branches += 1
        accepting += accepted
        refusing += refused
    kept.restore()
    return Enumerated(dict(p), branches, accepting, refusing)


def total_variation(p: Law, q: Law) -> float:
    """Half the summed difference of two laws: the largest difference in the probability of any event."""
    return sum(abs(p.get(tokens, 0.0) - q.get(tokens, 0.0)) for tokens in {*p, *q}) / 2
