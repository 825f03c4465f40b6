"""One model, one thread, one race at a time: races wait in order of arrival, and each session has one at most."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

import torch

from segue.api import Model
from segue.ui.race import Race

MOST_WAITING = 16
MOST_SESSIONS = 64  # whose last race is kept to be looked at


class Stage:
    """Drives races on a thread of its own, the only one that touches the model."""

    def __init__(self, model: Model, *, most_waiting: int = MOST_WAITING) -> None:
        self.model = model
        self.most_waiting = most_waiting
        self._wake = threading.Condition()
        self._queue: deque[Race] = deque()
        self._last: OrderedDict[str, Race] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="segue-ui", daemon=True)
        self._thread.start()

    def enter(self, session: str, race: Race) -> None:
        """Queue a race; what the session ran before is stopped. ValueError where too many wait."""
        with self._wake:
            self._drop(session)
            if len(self._queue) >= self.most_waiting:
                raise ValueError(f"{len(self._queue)} runs wait for the model already: try again soon")
            self._queue.append(race)
            self._last[session] = race
            while len(self._last) > MOST_SESSIONS:
                self._drop(next(iter(self._last)))
            self._wake.notify()

    def ahead(self, race: Race) -> int:
        """Races that come before it: those before it in the queue and the one that runs."""
        with self._wake:
            return self._queue.index(race) + 1 if race in self._queue else 0

    def last(self, session: str) -> Race | None:
        """The race that a session started last."""
        return self._last.get(session)

    def stop(self, session: str) -> None:
        """End the session's race; what it has come to can still be looked at."""
        with self._wake:
            race = self._last.get(session)
            if race is not None:
                self._cancel(race)

    def leave(self, session: str) -> None:
        """The session's page is closed."""
        with self._wake:
            self._drop(session)

    def _drop(self, session: str) -> None:
        race = self._last.pop(session, None)
        if race is not None:
            self._cancel(race)

    def _cancel(self, race: Race) -> None:
        race.stop()
        if race in self._queue:
            self._queue.remove(race)
            race.finished.set()

    def _work(self) -> None:
        with torch.no_grad():
            self.model.lm.cost.step(1)  # measured once, and not on the clock of the first race
            while True:
                with self._wake:
                    while not self._queue:
                        self._wake.wait()
                    race = self._queue.popleft()
                if race.neglected:
                    race.stop("stopped: the page was closed")
                race.drive()
