"""Drafters that are networks trained beside the target: what they read of it, and where their network comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from segue.data import Scores, Want
from segue.decode.speculative.base import Outcome, Speculative
from segue.models.heads import DraftNetwork, embedded, trained
from segue.models.lm import LM
from segue.models.run import Run

__all__ = ["Beside", "Trained"]


@dataclass(frozen=True, kw_only=True)
class Trained(Speculative):
    """Base of drafters that are networks trained beside the target, which draft from its hidden states."""

    network: ClassVar[type[DraftNetwork]]

    free: ClassVar[bool] = False

    heads: str | DraftNetwork | None = None  # folder of the trained drafter; none: the embedded one of this model

    def lacks(self, lm: LM) -> str:
        none = self.heads is None and embedded(lm, self.network.kind) is None
        return super().lacks(lm) or (f"there is no drafter of kind {self.network.kind} for this model" if none else "")

    @property
    def needs(self) -> Want:  # type: ignore[override]
        return Want(hidden=self.network.reads)

    def price(self, run: Run, tokens: int) -> float:
        return trained(run.lm, self.network, self.heads).seconds

    def start(self, run: Run) -> Any:
        return Beside(trained(run.lm, self.network, self.heads))

    def read(self, run: Run, state: Any, scores: Scores) -> None:
        state.see(scores, -1, len(run.ids) + 1)

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        state.see(outcome.scores, outcome.path[-1], len(run.ids))


@dataclass(slots=True)
class Beside:
    """What a run keeps of its trained drafter: the network, and the state behind the last token that was read."""

    network: Any
    _hidden: Tensor | None = None  # (D,)
    _length: int = 0  # of the run's ids when it is up to date

    def see(self, scores: Scores, node: int, length: int) -> None:
        """A forward of the target, whose last token that stays is that node's; the run then has so many ids."""
        if -1 in scores.hidden:  # not where others read the prompt for this run, or where a round was none of ours
            self._hidden, self._length = scores.hidden[-1][node], length

    def hidden(self, run: Run) -> Tensor | None:
        """(D,) behind the token before the pending one; None where that was not seen."""
        return self._hidden if self._length == len(run.ids) else None
