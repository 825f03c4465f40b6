"""Tokens to text while they arrive: no half characters, no text that may still turn out to be a stop string."""

from __future__ import annotations

from segue.models.lm import LM

CONTEXT = 6  # prompt tokens decoded along, so that a tokenizer's leading space is right
LONGEST_CHARACTER = 4  # bytes, so at most that many tokens
HALF = "\ufffd"


class TextStream:
    """Incremental decoding of one output. `push` is called for every new token, in order."""

    def __init__(self, lm: LM, prompt: list[int], stop: tuple[str, ...], drop: int = 0) -> None:
        """`drop`: characters at the start of what follows that are no output: tokens that repeat the prompt's end."""
        if stop and lm.tokenizer is None:
            raise ValueError(f"stop strings need a tokenizer, and {lm.name} has none: use stop_tokens")
        self._lm = lm
        self._stop = stop
        self._ids = list(prompt[-CONTEXT:])
        self._shown = 0  # text of _ids[_shown:_read] was decoded already
        self._read = len(self._ids)
        self._drop = drop
        self._sent = 0  # characters given out by `take`
        self.text = ""

    def push(self, token: int) -> bool:
        """Add a token; True when it completes a stop string (`text` then ends before it)."""
        self._ids.append(token)
        return bool(self._stop) and self._decode(final=False)

    def take(self) -> str:
        """The text that is certain by now and was not taken yet."""
        self._decode(final=False)
        return self._give(len(self.text) - self._open_stop())

    def close(self) -> None:
        """No more tokens come: what was held back is text as it is."""
        self._decode(final=True)

    def take_rest(self) -> str:
        """All text not taken yet, once closed."""
        return self._give(len(self.text))

    def _give(self, end: int) -> str:
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _decode(self, final: bool) -> bool:
        if self._read == len(self._ids):
            return False
        end, now = self._whole(final)
        if end == self._read:
            return False
        before = self._lm.decode(self._ids[self._shown : self._read])
        known = len(self.text)
        new = now[len(before) :]
        self.text += new[self._drop :]
        self._drop -= min(self._drop, len(new))
        self._shown, self._read = self._read, end
        return self._cut(known)

    def _whole(self, final: bool) -> tuple[int, str]:
        """How many ids end with a whole character, and the text since `_shown` up to there."""
        end = len(self._ids)
        earliest = max(self._read, end - LONGEST_CHARACTER)
        while end > earliest:
            now = self._lm.decode(self._ids[self._shown : end])
            if final or not now.endswith(HALF):
                return end, now
            end -= 1
        # What is still incomplete after the longest character will never be one: let the invalid bytes through.
        return end, self._lm.decode(self._ids[self._shown : end])

    def _cut(self, known: int) -> bool:
        """Cut the text at the first stop string that ends behind `known` characters."""
        places = []
        for stop in self._stop:
            at = self.text.find(stop, max(0, known - len(stop) + 1))
            if at >= 0:
                places.append(at)
        if places:
            self.text = self.text[: min(places)]
        return bool(places)

    def _open_stop(self) -> int:
        """Length of the longest end of the text that a stop string may continue."""
        longest = max((len(s) for s in self._stop), default=0)
        for size in range(min(longest - 1, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-size:]) for s in self._stop):
                return size
        return 0
