"""One text in the making: committed tokens, the pending one, and the past that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from segue.data import DraftTree

if TYPE_CHECKING:
    from segue.models.lm import LM


class Past(Protocol):
    """What a model keeps for a sequence. Positions are absolute."""

    def commit(self, path: list[int]) -> None: ...
    def truncate(self, length: int) -> None: ...
    def reopen(self, length: int) -> None: ...
    def fork(self) -> Past: ...
    def copy(self, length: int, still: bool = False) -> Past: ...
    def view(self, kept: Mapping[int, Tensor], turn: Any = None) -> Past: ...
    def follow(self, other: Any, start: int, stop: int) -> None: ...
    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Mark:
    """A place to roll back to: an absolute length and the token that was pending there."""

    length: int
    pending: int | None


class Sequence:
    """Committed token ids, a pending token (emitted, not yet in the past), and the past itself.

    A forward scores a `DraftTree` whose root is the pending token; its rows stay provisional until `commit`.
    """

    __slots__ = ("drafts", "lm", "past", "pending", "scored", "taken", "tokens")

    def __init__(self, lm: LM, past: Past) -> None:
        self.lm = lm
        self.past = past
        self.tokens: list[int] = []
        self.pending: int | None = None
        self.scored: DraftTree | None = None  # the tree of the last forward, not committed yet
        self.taken = 0  # of a view: tokens whose rows are those of the sequence it was taken from
        self.drafts = False  # its forwards are booked as drafting, also where the model is the target itself

    def __len__(self) -> int:
        """Committed tokens."""
        return len(self.tokens)

    def commit(self, path: list[int], pending: int | None = None) -> None:
        """Keep the nodes of `path` (root first) of the tree scored last; `pending` follows them."""
        tree = self.scored
        if tree is None:
            raise ValueError("nothing to commit: score a tree first, and commit it once")
        for before, node in zip([-1, *path[:-1]], path, strict=True):
            if tree.parents[node] != before or tree.scored_only[node]:
                raise ValueError(f"{path} is not a path of acceptable nodes from the root of the scored tree")
        self.past.commit(path)
        self.tokens.extend(tree.tokens[node] for node in path)
        self.pending = pending
        self.scored = None

    def mark(self) -> Mark:
        return Mark(len(self.tokens), self.pending)

    def rollback(self, mark: Mark) -> None:
        """Back to a mark taken earlier on this sequence (or before it was forked)."""
        if mark.length > len(self.tokens):
            raise ValueError(f"cannot roll back to length {mark.length}: the sequence has {len(self.tokens)} tokens")
        self.past.truncate(mark.length)
        del self.tokens[mark.length :]
        self.pending = mark.pending
        self.scored = None

    def reopen(self, mark: Mark) -> None:
        """Back to a mark, but what the first layers read since then one by one stays where it is, for one forward that
        runs the layers behind them on the same tokens, from their states (Want.layers and states)."""
        if mark.length > len(self.tokens):
            raise ValueError(f"cannot reopen at length {mark.length}: the sequence has {len(self.tokens)} tokens")
        self.past.reopen(mark.length)
        del self.tokens[mark.length :]
        self.pending = mark.pending
        self.scored = None

    def fork(self) -> Sequence:
        """A second sequence with the same past: the long part is shared, what follows is its own."""
        other = Sequence(self.lm, self.past.fork())
        other.tokens = list(self.tokens)
        other.pending = self.pending
        other.drafts = self.drafts
        self.scored = None  # its provisional rows may have become part of a read-only piece
        return other

    def copy(self, length: int, still: bool = False) -> Sequence:
        """A second sequence that has read the first tokens of this one, as far as they are not shared already on rows
        of its own: a fork costs less to make and more to read. `still`: nothing will be added to it."""
        other = Sequence(self.lm, self.past.copy(length, still))
        other.tokens = self.tokens[:length]
        return other

    def view(self, kept: Mapping[int, Tensor]) -> Sequence:
        """A drafting sequence over a copy of part of the past: of every layer in `kept` the rows named there, (k,) or
        for each KV head (G, k), ascending; of other layers all. Tokens and positions stay as they are."""
        return self._drafting(self.past.view(kept), self.tokens)

    def excerpt(self, places: Tensor) -> Sequence:
        """A drafting sequence over a copy of the rows at these positions (k,), ascending, moved up as if nothing were
        between them. Raises CapabilityError where keys cannot be moved."""
        whole = places.shape[0] == len(self.tokens)
        turn = None if whole or int(places[-1]) == len(places) - 1 else self.lm.turn()
        past = self.past.view(dict.fromkeys(range(self.lm.layers), places), turn or _stay)
        return self._drafting(past, [self.tokens[i] for i in places.tolist()])

    def follow(self, other: Sequence) -> None:
        """Give up what was drafted here and take over what `other`, the sequence that this one is a view of, has
        committed since."""
        start = self.taken
        self.rollback(Mark(start, None))
        self.past.follow(other.past, start, len(other))
        self.tokens.extend(other.tokens[start:])
        self.pending, self.taken = other.pending, len(other)

    def _drafting(self, past: Past, tokens: list[int]) -> Sequence:
        other = Sequence(self.lm, past)
        other.tokens, other.drafts, other.taken = list(tokens), True, len(tokens)
        return other

    def adopt(self, other: Sequence) -> None:
        """Take over what `other` has read, which is given up."""
        self.release()
        self.past, self.tokens, self.pending = other.past, other.tokens, other.pending

    def release(self) -> None:
        """Free the past. The sequence can be used again from the start."""
        self.past.release()
        self.tokens = []
        self.pending = None
        self.scored = None


def _stay(_: int, keys: Tensor, __: Tensor) -> Tensor:
    """Rows that keep their places need no turn."""
    return keys
