"""Prompts read lately: a later one that begins alike goes on from there instead of reading it again."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from segue.models.lm import LM
from segue.models.sequence import Mark, Sequence

LEAST = 64  # tokens in common that are worth a fork
MOST = 64  # prompts kept: each is compared with
COPIED = 1 << 18  # bytes of a layer's rows up to which a copy is read faster than rows that are shared with others


class Prefixes:
    """Keeps what was computed of prompts, the latest used of them within a budget of bytes. Belongs to the thread that
    steps the engine."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.hits = 0  # prompts that began like a kept one
        self.tokens = 0  # of them that were not read again
        self._kept: list[Sequence] = []  # latest last

    @property
    def bytes(self) -> int:
        """Of the rows that are kept; what is shared among them counts for each."""
        return sum(len(kept) * kept.lm.bytes_per_row for kept in self._kept)

    def match(self, lm: LM, prompt: Seq[int]) -> Sequence | None:
        """A sequence that has read the longest kept beginning of a prompt, but not its last token, which is scored."""
        found = [(_alike(kept.tokens, prompt), kept) for kept in self._kept if kept.lm is lm]
        common, best = max(found, key=lambda pair: pair[0], default=(0, None))
        common = min(common, len(prompt) - 1)
        if best is None or common < LEAST:
            return None
        self._kept.remove(best)
        self._kept.append(best)
        self.hits += 1
        self.tokens += common
        if common * lm.bytes_per_row <= COPIED * lm.layers:
            return best.copy(common)
        other = best.fork()
        other.rollback(Mark(common, None))
        return other

    def keep(self, sequence: Sequence) -> None:
        """Keep what a sequence has read. A backend whose sequences share a fixed number of rows has none to spare."""
        size = len(sequence)
        if size < LEAST or sequence.lm.kv_rows is not None or size * sequence.lm.bytes_per_row > self.budget:
            return
        for kept in list(self._kept):
            alike = _alike(kept.tokens, sequence.tokens) if kept.lm is sequence.lm else 0
            if alike == size:
                return
            if alike == len(kept):
                self._drop(kept)
        self._kept.append(sequence.copy(size, still=True))
        while self.bytes > self.budget or len(self._kept) > MOST:
            self._drop(self._kept[0])

    def _drop(self, kept: Sequence) -> None:
        self._kept.remove(kept)
        kept.release()


def _alike(left: Seq[int], right: Seq[int]) -> int:
    """Tokens that both begin with."""
    most = min(len(left), len(right))
    return next((i for i in range(most) if left[i] != right[i]), most)
