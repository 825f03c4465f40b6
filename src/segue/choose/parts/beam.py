"""The beam driver: a few hypotheses grow side by side, the best of their children go on.

Selection, finished list and stopping rule are those of transformers' beam search, so that results can be compared
token by token. Methods change what a candidate is worth (`propose` with a bias) or who is admitted (`admit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segue.choose.parts.hypothesis import Hypothesis, advance, log_p, satisfied
from segue.models.run import Decoder, Run

EARLY = ("heuristic", "full", "never")


@dataclass(eq=False, slots=True)
class Beam:
    """One beam: what runs, best first, and the best finished hypotheses, ranked by score / length ** length_penalty."""

    run: Run
    size: int
    length_penalty: float = 1.0
    early: str = "heuristic"  # stop when no running one can win (by today's length), when `size` are finished, or never
    running: list[Hypothesis] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)  # their `score` is normalised
    improvable: bool = True

    @property
    def closed(self) -> bool:
        """Whether nothing more can be finished."""
        return not self.improvable or (self.early == "full" and len(self.finished) >= self.size)

    @property
    def done(self) -> bool:
        return not self.running or self.closed

    @property
    def reach(self) -> int:
        """Candidates that a step looks at: enough that `size` go on where others end the text."""
        return max(2, 1 + len(self.run.ends)) * self.size

    def propose(self, bias: Tensor | None = None) -> list[Hypothesis]:
        """The best children of what runs, best first, at most `reach`. `bias` (V,) or (running, V) is added to their
        scores. Children that nothing allows are left out."""
        rows = torch.stack([log_p(self.run, h) for h in self.running])
        before = torch.tensor([h.score for h in self.running], device=rows.device)[:, None]
        total = rows + before if bias is None else rows + before + bias
        values, places = total.flatten().topk(min(self.reach, total.numel()))
        width = rows.shape[1]
        found = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if value == float("-inf"):
                break
            parent, token = self.running[place // width], place % width
            child = parent.child(self.run, token, float(rows[place // width, token]), score=value)
            if child.reason is None or satisfied(self.run, child):
                found.append(child)
        return found

    def admit(self, candidates: list[Hypothesis], *, among: int | None = None) -> None:
        """Replace what runs by the best unfinished candidates (given best first). Of the first `among` (by default
        `size`) those that end the text are finished."""
        if not self.closed:
            for child in candidates[: self.size if among is None else among]:
                if child.reason is not None:
                    child.score /= len(child.tokens) ** self.length_penalty
                    self.finished.append(child)
        self.finished.sort(key=lambda h: -h.score)
        del self.finished[self.size :]
        for child in self.finished:
            child.parent = None
        self.running = [child for child in candidates if child.reason is None][: self.size]
        self.improvable = self.improvable and self._may_improve()

    def _may_improve(self) -> bool:
        if len(self.finished) < self.size or not self.running:
            return True
        length = len(self.running[0].tokens)
        if self.early == "never" and self.length_penalty > 0:
            length = self.run.max_tokens
        best: float = self.running[0].score / length**self.length_penalty
        return best > self.finished[-1].score


def search(run: Run, beams: list[Beam], step: Callable[[], None]) -> Decoder[None]:
    """Grow beams until all are done. `step` replaces what runs in every beam by children of it; the children of all
    beams are read in one forward."""
    while not all(beam.done for beam in beams):
        parents = [h for beam in beams for h in beam.running]
        step()
        children = [h for beam in beams for h in beam.running if not beam.done]
        yield from advance(run, children)
        for parent in parents:
            parent.release()


def ranked(beams: list[Beam]) -> list[Hypothesis]:
    """Everything finished, best first."""
    return sorted((h for beam in beams for h in beam.finished), key=lambda h: -h.score)
