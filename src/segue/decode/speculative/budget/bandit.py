"""A bandit over ways to draft: discounted tokens per second of each, with an optimism that shrinks as it is tried.

Rewards are tokens and costs are seconds, so the value of an arm is a ratio of sums, not a mean of ratios. What was seen
is discounted every round, so that an arm which was bad earlier is tried again, ever more rarely tried arms first.
Discounted UCB: Garivier and Moulines 2011 (arXiv:0805.3415).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DISCOUNT = 0.99
OPTIMISM = 0.35  # width of the confidence bonus, as a share of an arm's own value


@dataclass(slots=True)
class Arm:
    """Discounted sums of what one arm gave."""

    tokens: float
    seconds: float
    rounds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Bandit:
    """Choose, then learn. Ties go to the arm named first."""

    def __init__(self, priors: dict[str, tuple[float, float]], discount: float = DISCOUNT) -> None:
        """`priors`: per arm the tokens and seconds of a round that are expected of it, worth one observation."""
        if not priors:
            raise ValueError("a bandit needs an arm")
        self._priors = priors
        self._discount = discount
        self.arms = {name: Arm(tokens, seconds, 1.0) for name, (tokens, seconds) in priors.items()}

    def value(self, name: str) -> float:
        """Optimistic tokens per second."""
        arm = self.arms[name]
        total = sum(a.rounds for a in self.arms.values())
        return arm.rate * (1 + OPTIMISM * math.sqrt(math.log(1 + total) / arm.rounds) / (1 + len(self.arms)))

    def choose(self) -> str:
        return max(self.arms, key=self.value)

    def learn(self, name: str, tokens: float, seconds: float) -> None:
        for other, arm in self.arms.items():
            # Forgetting goes towards the prior, which keeps one observation's weight.
            tokens0, seconds0 = self._priors[other]
            arm.tokens = tokens0 + self._discount * (arm.tokens - tokens0)
            arm.seconds = seconds0 + self._discount * (arm.seconds - seconds0)
            arm.rounds = 1.0 + self._discount * (arm.rounds - 1.0)
        arm = self.arms[name]
        arm.tokens += tokens
        arm.seconds += seconds
        arm.rounds += 1.0
