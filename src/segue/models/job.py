"""What the engine keeps of a run: its decoder, what that waits for, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from segue.data import Scores
from segue.models.run import Decoder, Forward, Prefill, Request, Run
from segue.models.sequence import Sequence

TREE_ROWS = 128  # provisional rows allowed for on top of a run's tokens


@dataclass(eq=False, slots=True)
class Piece:
    """One forward or prefill that a job waits for."""

    job: Job
    request: Forward | Prefill
    done: int = 0  # tokens of a prefill that are read already
    scores: Scores | None = None
    hidden: dict[int, list[Tensor]] = field(default_factory=dict)  # of a prefill: state -> those of every chunk so far

    def read(self, scores: Scores, size: int) -> None:
        """Take the scores of a chunk of `size` tokens; those of the last one are a prefill's, with the hidden states of
        all its tokens."""
        self.done += size
        for state, rows in scores.hidden.items():
            self.hidden.setdefault(state, []).append(rows)
        if not self.rows:
            self.scores = scores
            if self.done > size:
                scores.hidden = {state: torch.cat(parts) for state, parts in self.hidden.items()}

    @property
    def rows(self) -> int:
        """Rows that are still to be computed."""
        if isinstance(self.request, Forward):
            return len(self.request.tree) - self.request.want.since
        return len(self.request.tokens) - self.done


@dataclass(eq=False)
class Job:
    """A run, its decoder, and what it waits for."""

    run: Run
    decoder: Decoder[None]
    rows: int  # cache rows set aside for it
    request: Request | None = None
    pieces: list[Piece] = field(default_factory=list)  # of the request
    error: BaseException | None = None
    started: bool = False
    children: list[Job] = field(default_factory=list)

    def resolved(self) -> Job:
        """The job that does the work."""
        return self

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.started and self.request is None)


def rows_of(run: Run, *, forked: bool = False) -> int:
    """Cache rows that a run may need: for every sequence that it may hold a whole answer, and its prompt once unless
    that is another run's already."""
    answers = run.width * (run.max_tokens + TREE_ROWS)
    return answers if forked else len(run.source) + run.prompt_length + answers


def owners(pack: list[tuple[Piece, int]]) -> list[Job]:
    """Whose pieces they are, in order."""
    return list(dict.fromkeys(piece.job for piece, _ in pack))


def book(run: Run, sequence: Sequence, seconds: float, *, prefill: bool, rows: int) -> None:
    """Count a forward on the run that asked for it; a shared one is booked in full on everyone who shared it."""
    stats = run.stats
    if sequence.drafts or sequence.lm is not run.lm:
        stats.draft_forwards += 1
        stats.drafting_seconds += seconds
        return
    stats.target_forwards += 1
    stats.rows += rows
    stats.prefill_forwards += prefill
    if prefill:
        stats.prefill_seconds += seconds
    else:
        stats.verifying_seconds += seconds
