"""How much a round may draft: the controllers, by name."""

from __future__ import annotations

from collections.abc import Callable

from segue.decode.speculative.budget.base import Budget, Costs, Planner
from segue.decode.speculative.budget.ema import EMA
from segue.decode.speculative.budget.expected_gain import ExpectedGain
from segue.decode.speculative.budget.fixed import Fixed
from segue.decode.speculative.budget.heuristic import Heuristic
from segue.decode.speculative.budget.thompson import Thompson

__all__ = ["CONTROLLERS", "Budget", "Costs", "Planner", "controller"]

CONTROLLERS: dict[str, Callable[[Costs], Planner]] = {
    "gain": ExpectedGain,
    "fixed": Fixed,
    "heuristic": Heuristic,
    "ema": EMA,
    "thompson": Thompson,
}


def controller(name: str) -> Callable[[Costs], Planner]:
    """The controller of that name; ValueError names the others."""
    if name not in CONTROLLERS:
        raise ValueError(f"budget={name!r} is not allowed: one of {', '.join(CONTROLLERS)}")
    return CONTROLLERS[name]
