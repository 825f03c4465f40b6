"""What an answer looks like from behind one of its steps: the rest is simulated, and judged by its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segue.choose.parts.hypothesis import Hypothesis, satisfied
from segue.choose.parts.unit import Draw, Unit, extend
from segue.models.run import Decoder, Run

WHOLE = Unit("whole")


@dataclass(eq=False, slots=True)
class Path:
    """A text up to the end of a step, and what was seen behind it."""

    text: Hypothesis
    begin: int = 0  # of its last step: tokens before it
    before: float = 0.0  # F of the beam that the step was drawn from
    value: float = 0.0  # F
    ending: tuple[int, ...] = ()  # the tokens that F is the mean of: the simulated rest, or the step where it ends all

    @property
    def advantage(self) -> float:
        return self.value - self.before

    @property
    def likelihood(self) -> float:
        """The mean log-probability of its last step."""
        return _mean(self.text.logps[self.begin :])

    @property
    def step(self) -> list[int]:
        return self.text.tokens[self.begin :]

    def saw(self, whole: Hypothesis) -> None:
        """Note the answer that this text leads to. An end that a step itself wrote is its own rest."""
        since = self.begin if self.text.reason is not None else len(self.text.tokens)
        self.value, self.ending = _mean(whole.logps[since:]), tuple(whole.tokens[since:])

    def stay(self) -> Path:
        """A finished text goes on as it is, and has no advantage any more."""
        return replace(self, before=self.value)


def look(run: Run, paths: list[Path], draw: Draw) -> Decoder[list[Path]]:
    """Simulate the rest behind each of these, on forks of their pasts; those that come to a dead end are left out."""
    ends = yield from extend(run, [path.text.fork() for path in paths], WHOLE, draw)
    found = []
    for path, end in zip(paths, ends, strict=True):
        if end is not None and satisfied(run, end):
            path.saw(end)
            found.append(path)
        else:
            path.text.release()
    return found


def words(run: Run, tokens: Sequence[int]) -> str:
    """What endings are compared by: their text, or the token ids as numbers where the model has no tokenizer."""
    return run.lm.decode(tokens) if run.lm.tokenizer is not None else " ".join(map(str, tokens))


def shown(paths: list[Path], labels: list[int], weights: list[float]) -> list[dict[str, Any]]:
    """Paths for a trace, with the cluster of each one's ending and its weight."""
    return [
        {"tokens": p.text.tokens, "ending": list(p.ending), "F": p.value, "A": p.advantage, "cluster": label, "w": w}
        for p, label, w in zip(paths, labels, weights, strict=True)
    ]


def _mean(logps: list[float]) -> float:
    return sum(logps) / len(logps) if logps else 0.0
