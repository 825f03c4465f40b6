"""The nouns: what is asked of a model, what comes back, and what a user gets."""

from __future__ import annotations

from segue.data.automaton import NEVER, Automaton
from segue.data.completion import Candidate, Completion, FinishReason, Stats, TokenLogprob
from segue.data.scores import Distribution, PackedLogits, Scores, Want
from segue.data.settings import Settings
from segue.data.tree import DraftTree

__all__ = [
    "NEVER",
    "Automaton",
    "Candidate",
    "CapabilityError",
    "Completion",
    "ConstraintError",
    "Distribution",
    "DraftTree",
    "FinishReason",
    "NumericError",
    "PackedLogits",
    "Scores",
    "Settings",
    "Stats",
    "TokenLogprob",
    "Want",
]


class CapabilityError(ValueError):
    """The model, or this build, cannot do what was asked; the message names the way out."""


class NumericError(ArithmeticError, ValueError):
    """A model gave numbers that are none: its weights, its dtype or the device fail, not the request."""


class ConstraintError(ValueError):
    """No text satisfies the constraint: it is empty, came to a dead end or ran out of tokens. The message names it and
    the text so far."""
