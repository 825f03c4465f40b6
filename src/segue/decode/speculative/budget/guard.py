"""Never slower than plain: the clock's own word on whether drafting pays, whatever was predicted.

Rounds are timed. Plain rounds are taken now and then as the baseline; over windows of drafted rounds the measured rate
is compared with it, by medians of a round's seconds, since a disturbed round says nothing. After three windows in a row
below 0.97 of plain, drafting rests for a while, twice as long each time.
"""

from __future__ import annotations

import statistics
from collections import deque

FLOOR = 0.97
WINDOW = 8  # drafted rounds
STRIKES = 3
REST = 64  # plain rounds of the first pause
LONGEST_REST = 1024
CLEAR = 1.3  # a predicted gain from which on baselines are taken rarely
OFTEN, RARELY = 16, 64  # rounds between two baselines


class Guard:
    """The watch over the requests of one kind on one model."""

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=9)  # seconds of a plain round
        self._seconds: list[float] = []
        self._tokens = 0
        self._since_plain = 0
        self._strikes = 0
        self._rest = REST
        self.resting = 0  # plain rounds still to come
        self.pauses = 0
        self.ratio: float | None = None  # measured rate of the last window over plain's

    def plain_round(self, predicted_gain: float) -> bool:
        """Whether the next round must be plain: a pause, or a baseline that is due."""
        if self.resting:
            self.resting -= 1
            return True
        return self._since_plain >= (RARELY if predicted_gain > CLEAR else OFTEN)

    def saw(self, *, plain: bool, tokens: int, seconds: float) -> None:
        """A round took that long."""
        if plain:
            self._plain.append(seconds)
            self._since_plain = 0
            return
        self._since_plain += 1
        self._seconds.append(seconds)
        self._tokens += tokens
        if len(self._seconds) < WINDOW:
            return
        if self._plain:
            # The median round times the count: a round that the machine disturbed does not decide.
            spent = statistics.median(self._seconds) * len(self._seconds)
            self.ratio = self._tokens / spent * statistics.median(self._plain)
            self._judge()
        self._seconds, self._tokens = [], 0

    def _judge(self) -> None:
        assert self.ratio is not None
        if self.ratio >= FLOOR:
            self._strikes = 0
            return
        self._strikes += 1
        if self._strikes == STRIKES:
            self._strikes, self.resting = 0, self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
            self.pauses += 1
