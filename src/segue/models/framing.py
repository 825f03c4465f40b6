"""The special tokens that an encoder's tokenizer puts around a text, so that token ids can be framed like texts."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any


class Frame:
    """What stands before and behind a text's own tokens, and how many there may be altogether."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.longest = longest
        self._tokenizer = tokenizer
        bare, framed = self.encode("a"), list(tokenizer("a")["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self.before, self.behind = framed[:start], framed[start + len(bare) :]

    @property
    def room(self) -> int:
        """Tokens that a text itself may have."""
        return self.longest - len(self.before) - len(self.behind)

    def encode(self, text: str) -> list[int]:
        """A text's own tokens, however many. ValueError where it is not Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not Unicode: half a surrogate pair at character {error.start}") from None
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    def around(self, ids: Seq[int], cut: bool = False) -> list[int]:
        """Own tokens with the special ones around them. ValueError for none at all, for ids outside the vocabulary, and
        for too many, unless their end may be `cut`."""
        size = len(self._tokenizer)
        strange = next((i for i in ids if not 0 <= i < size), None)
        if strange is not None:
            raise ValueError(f"token {strange} is not in the vocabulary of {size} tokens")
        if not (ids or self.before or self.behind):
            raise ValueError("a text without tokens has no vector")
        if len(ids) > self.room and not cut:
            raise ValueError(
                f"a text of {len(ids)} tokens is longer than the model reads ({self.room}): shorten it, or let it be "
                "cut by truncate"
            )
        return [*self.before, *ids[: self.room], *self.behind]
