"""How often a batch of `segue run --engine ray` was begun: apart from the workers, in a process without torch."""

from __future__ import annotations


class Attempts:
    """Lives beside the workers, whose end it outlasts: Ray itself would repeat a batch for ever."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: dict[int, int] = {}

    def begin(self, batch: int) -> bool:
        """Whether to answer the batch once more."""
        self._begun[batch] = self._begun.get(batch, 0) + 1
        return self._begun[batch] <= self._most
