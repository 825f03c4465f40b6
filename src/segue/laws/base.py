"""What all laws share: decoding without the front door, and the error that says a promise was broken."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from segue.data import Completion, Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method, sequences_of
from segue.models.run import Run
from segue.ops.chance import Chance


class LawBroken(AssertionError):
    """A method does not do what its card promises."""


def decode(
    lm: LM,
    method: Method,
    prompts: Iterable[Sequence[int]],
    settings: Settings,
    *,
    source: Chance | None = None,
    engine: Engine | None = None,
) -> list[Completion]:
    """Answer the prompts in one batch; `source` stands in for the generator of every request."""
    engine = engine or Engine()
    jobs = []
    for prompt in prompts:
        run = Run(lm, list(prompt), settings, source=source)
        run.width = sequences_of(method)
        jobs.append(engine.add(run, method.run(run)))
    engine.drain(jobs)
    return [job.run.completion() for job in jobs]


class Kept:
    """What the drafters of a model (and of its draft models) have learned, to be put back before every replay."""

    def __init__(self, lm: LM) -> None:
        models = {id(model): model for model in (lm, *lm.companions.values())}
        self._saved = [(model, copy.deepcopy(model.stores)) for model in models.values()]

    def restore(self) -> None:
        for model, stores in self._saved:
            model.stores = copy.deepcopy(stores)
