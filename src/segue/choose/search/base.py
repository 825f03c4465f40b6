"""What every search holds: how wide it is, and how it compares texts of different lengths."""

from __future__ import annotations

from dataclasses import dataclass

from segue.choose.parts.beam import EARLY


@dataclass(frozen=True)
class Searching:
    """A search with a beam."""

    beams: int = 4  # hypotheses that grow side by side
    length_penalty: float = 1.0  # finished texts are ranked by log-probability / length ** this; 0 by the sum
    early: str = "heuristic"  # stop: heuristic (none can win at today's length), full (that many finished), never

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams={self.beams} is not allowed: at least 1 (1 is greedy)")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(
                f"length_penalty={self.length_penalty} is not allowed: from -10 to 10 (0 is the plain sum)"
            )
        if self.early not in EARLY:
            raise ValueError(f"early={self.early!r} is not allowed: {', '.join(EARLY)}")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time: what is kept free for it."""
        return self.beams
