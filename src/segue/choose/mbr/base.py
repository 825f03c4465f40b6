"""What minimum Bayes risk decoders hold: where answers come from, and which of them serve as references."""

from __future__ import annotations

from dataclasses import dataclass

from segue.choose.parts import rerank
from segue.choose.parts.judge import AT_ONCE
from segue.choose.parts.rerank import Drafter


@dataclass(frozen=True)
class Consensus:
    """Answers, drawn as often as the model likes them, judge each other."""

    inner: Drafter = "plain"  # who writes the answers, by name or as an object; a search gives its n-best list
    samples: int = 8  # answers written
    temperature: float = 1.0  # they are sampled at, where the request itself is greedy
    references: int = 0  # so many of them, drawn at random, serve as references; 0: all
    duplicates: str = "count"  # equal answers: count (each is a reference) or merge (one for all)

    def __post_init__(self) -> None:
        rerank.check(self.samples, self.temperature, self.duplicates)
        if self.references < 0:
            raise ValueError(f"references={self.references} is not allowed: at least 1, or 0 for all samples")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time: its answers, then those of a judge."""
        return max(rerank.sequences(self.inner, self.samples), 2 * AT_ONCE)
