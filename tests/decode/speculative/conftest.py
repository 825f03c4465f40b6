"""What tests of several drafters look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from segue.data import DraftTree, Settings
from segue.laws.base import decode
from segue.models.lm import LM

FirstTree = Callable[[LM, Any, Sequence[int], Settings], DraftTree | None]


@pytest.fixture
def first_tree() -> FirstTree:
    """The first tree that a method had verified by the target, or None where all rounds were plain ones."""

    def found(lm: LM, method: Any, prompt: Sequence[int], settings: Settings) -> DraftTree | None:
        trees: list[DraftTree] = []
        forward = lm.forward

        def spy(asks: Any) -> Any:
            trees.extend(tree for own, tree, _ in asks if len(own) and not own.drafts and len(tree) > 1)
            return forward(asks)

        lm.forward = spy  # type: ignore[method-assign]
        try:
            decode(lm, method, [list(prompt)], settings)
        finally:
            del lm.forward
        return next(iter(trees), None)

    return found
