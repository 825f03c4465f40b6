"""Two methods on one prompt, taking turns at the model: what each costs is its own.

Each method has an engine of its own, so no forward is shared: tokens per forward and seconds are what they would be if
it ran alone. The one that has used less time goes next, so both streams advance at their true relative speed, and what
else the machine does meanwhile slows both down. Each starts from empty stores: none learns from the other's text.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from segue.api import Model, Request, method_name
from segue.data import Completion
from segue.models.engine import Engine, free_memory
from segue.models.job import Job
from segue.models.lm import LM
from segue.models.method import sequences_of
from segue.models.run import Run
from segue.models.text import TextStream
from segue.ui.watch import Log, watched

log = logging.getLogger("segue.ui")
WARM = 64  # tokens of the prompt
NEGLECT = 15.0  # seconds after which a run that nobody looks at is stopped


@dataclass(frozen=True, slots=True)
class Split:
    """Where a side's time went, in seconds. They add up to its clock."""

    prefill: float
    drafting: float
    verifying: float
    rest: float


class Side:
    """One method's half of a race. The worker's thread drives it; others look at it."""

    def __init__(self, lm: LM, request: Request) -> None:
        self.lm = lm
        self.name = method_name(request.method)
        self.request = request
        self.seconds = 0.0  # of its own clock
        self.log = Log()
        self.pieces: list[str] = []  # the text of each token; joined they are the text so far
        self.completion: Completion | None = None
        self.trouble: str | None = None
        self.run: Run | None = None
        self.selected: int | None = None  # the step that its user looks at
        self._engine: Engine | None = None
        self._job: Job | None = None
        self._text: TextStream | None = None
        self._stores: dict[str, Any] = {}

    @property
    def over(self) -> bool:
        return self.completion is not None or self.trouble is not None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def word(self, token: int) -> str:
        """How a single token is spelled."""
        return self.lm.decode([token]) or ("⟨end⟩" if token in self.lm.eos_ids else "∅")

    @property
    def split(self) -> Split:
        stats = self.run.stats if self.run is not None else None
        if stats is None:
            return Split(0.0, 0.0, 0.0, 0.0)
        parts = stats.prefill_seconds, stats.drafting_seconds, stats.verifying_seconds
        return Split(*parts, max(0.0, self.seconds - sum(parts)))

    def start(self, model: Model, kv_budget: int) -> None:
        """Queue the run in an engine of its own."""
        try:
            ids = model.encode(self.request.prompt)
            self.run = Run(self.lm, ids, self.request.settings, method=self.name)
            self.run.width = sequences_of(self.request.method)
            self._engine = Engine(kv_budget=kv_budget)
            self._job = self._engine.add(self.run, watched(self.run, self.request.method.run(self.run), self.log))
        except Exception as error:
            self._fail(error)

    def step(self) -> None:
        """One forward, and what its scores lead to."""
        assert self._engine is not None
        assert self._job is not None
        theirs, self.lm.stores = self.lm.stores, self._stores
        begin = time.perf_counter()
        try:
            self._engine.step()
        finally:
            self.seconds += time.perf_counter() - begin
            self.lm.stores = theirs
        self._spell()
        if self._job.error is not None:
            self._fail(self._job.error)
        elif self._job.finished:
            assert self.run is not None
            self.completion = self.run.completion()
            self._close(self.completion.text)

    def stop(self) -> None:
        """Free what the run holds of the model."""
        if self._engine is not None and self._job is not None:
            self._engine.cancel(self._job)
        self._engine = self._job = None
        self._stores = {}

    def _spell(self) -> None:
        """The text of the tokens that are new."""
        assert self.run is not None
        output = self.run.output
        if self._text is None and output:
            self._text = TextStream(self.lm, self.run.ids[: self.run.prompt_length], ())
        for token in output[len(self.pieces) :]:
            assert self._text is not None
            self._text.push(token)
            self.pieces.append(self._text.take())

    def _close(self, text: str) -> None:
        """The last token takes what was held back as half a character. A method that spells the prompt's end anew
        gives it out once more as tokens: they have no text of the output."""
        if self._text is None:
            return
        self._text.close()
        self.pieces[-1] += self._text.take_rest()
        again = len(self.text) - len(text)
        if again > 0 and self.text.endswith(text):
            for place, piece in enumerate(self.pieces):
                cut = min(again, len(piece))
                self.pieces[place], again = piece[cut:], again - cut

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, ValueError):  # its message is written for users
            self.trouble = str(error)
        else:
            log.error("%s failed", self.name, exc_info=error)
            self.trouble = "this run failed; the terminal of segue ui says why"


@dataclass(eq=False)
class Race:
    """Both sides, from the queue to the end."""

    model: Model
    requests: tuple[Request, Request]
    sides: tuple[Side, Side] = field(init=False)
    finished: threading.Event = field(default_factory=threading.Event)
    stopped: str | None = None  # why it ended before its end
    begun: bool = False
    drafters: dict[str, int] = field(default_factory=dict)  # their numbers, by which the page marks them
    _looked: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        left, right = self.requests
        self.sides = Side(self.model.lm, left), Side(self.model.lm, right)

    def look(self) -> None:
        """Somebody still waits for it."""
        self._looked = time.monotonic()

    def stop(self, why: str = "stopped") -> None:
        """End it before its next forward."""
        if not self.finished.is_set():
            self.stopped = self.stopped or why

    @property
    def neglected(self) -> bool:
        return time.monotonic() - self._looked > NEGLECT

    def drive(self) -> None:
        """Run both to their ends. Whatever happens, the model's memory is free afterwards."""
        self.begun = True
        try:
            budget = max(free_memory() // 4, 1)
            if self.stopped is None:
                self._warm()
                for side in self.sides:
                    side.start(self.model, budget)
            together = self._fit()
            while self.stopped is None:
                going = [side for side in self.sides if not side.over]
                if not going:
                    break
                (min(going, key=lambda side: side.seconds) if together else going[0]).step()
                if self.neglected:
                    self.stop("stopped: the page was closed")
        except Exception as error:  # a bug of ours or of the engine: the next race must still be served
            log.error("a race failed", exc_info=error)
            self.stop("this run failed; the terminal of segue ui says why")
        finally:
            for side in self.sides:
                side.stop()
            self.finished.set()

    def _warm(self) -> None:
        """Read the beginning of the prompt off the clock: the first side would pay for cold caches, the second not."""
        self.model.generate(self.model.encode(self.requests[0].prompt)[:WARM], "plain", max_tokens=1)

    def _fit(self) -> bool:
        """Whether the model's cache has room for both at a time; else one runs after the other."""
        lm = self.model.lm
        jobs = [side._job for side in self.sides if side._job is not None]
        rows, width = sum(job.rows for job in jobs), sum(job.run.width for job in jobs)
        return (lm.kv_rows is None or rows <= lm.kv_rows) and (lm.most_sequences is None or width <= lm.most_sequences)
