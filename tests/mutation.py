"""Rules with a fault: what a law must notice."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest


def mutate(patch: pytest.MonkeyPatch, owner: Any, function: str, old: str, new: str) -> None:
    """Replace a function by its own source with one expression changed, so that a mutation cannot outlive the rule."""
    original = getattr(owner, function)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(old) == 1
    namespace = dict(original.__globals__)
    exec("from __future__ import annotations\n" + source.replace(old, new), namespace)
    patch.setattr(owner, function, namespace[function])
