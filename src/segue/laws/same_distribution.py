"""SameDistribution: sampled output follows the model's own (warped) distribution, exactly.

The method's randomness is enumerated on a model whose law can be written down, so there is no sampling error: a wrong
acceptance rule shows as a total variation of some hundredths, a right one as rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import Enumerated, distribution, total_variation
from segue.laws.oracle import TableOracle
from segue.models.lm import LM
from segue.models.method import Method

TOLERANCE = 1e-9  # rounding of float64 products


def same_distribution(
    method: Method, lm: LM, prompt: Sequence[int], settings: Settings, *, warm: bool = True, most: int = 20_000
) -> Enumerated:
    """The method's law on an enumerable model equals the model's. `warm` lets drafters learn from a request first, so
    that there is something to verify."""
    if warm:
        warm_up(method, lm, prompt)
    found = distribution(lm, method, prompt, settings, most)
    lm.reset_stores()
    total = sum(found.p.values())
    if abs(total - 1) > TOLERANCE:
        raise LawBroken(f"the branches of {method} have a total probability of {total}")
    expected = TableOracle(lm).law(prompt, settings)
    distance = total_variation(found.p, expected)
    if not distance <= TOLERANCE:
        worst = max({*found.p, *expected}, key=lambda t: abs(found.p.get(t, 0.0) - expected.get(t, 0.0)))
        raise LawBroken(
            f"{method} on {lm.name} with {settings} is {distance:.3g} in total variation from the model's law: "
            f"{worst} has probability {found.p.get(worst, 0.0):.6g} instead of {expected.get(worst, 0.0):.6g}"
        )
    return found


def as_far_as(
    branches: int, method: Method, lm: LM, prompt: Sequence[int], settings: Settings, longest: int = 8
) -> list[Enumerated]:
    """The law for 2, 3, ... new tokens, until an enumeration takes more than so many branches."""
    seen: list[Enumerated] = []
    for length in range(2, longest + 1):
        seen.append(same_distribution(method, lm, prompt, replace(settings, max_tokens=length)))
        if seen[-1].branches > branches:
            break
    return seen


def divergence(method: Method, lm: LM, prompt: Sequence[int], settings: Settings) -> float:
    """Total variation between the method's law and the model's."""
    warm_up(method, lm, prompt)
    found = distribution(lm, method, prompt, settings)
    lm.reset_stores()
    return total_variation(found.p, TableOracle(lm).law(prompt, settings))


def warm_up(method: Method, lm: LM, prompt: Sequence[int]) -> None:
    """Let drafters learn from a greedy and a sampled request on an otherwise fresh model."""
    lm.reset_stores()
    for settings in (Settings(max_tokens=12), Settings(max_tokens=24, temperature=1.5, seed=0)):
        decode(lm, method, [prompt], settings)
