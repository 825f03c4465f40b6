"""What a decoder does, step by step, seen from outside: its requests pass through, and nobody waits for them longer.

A decoder asks for the scores of a tree and later gives out tokens. What the run's sequence committed meanwhile is the
accepted path, so no method has to tell. A method that is not watched pays nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from segue.data import DraftTree
from segue.models.run import Decoder, Forward, Request, Run

UNNAMED = "draft"  # the source of a node whose drafter does not name itself


@dataclass(frozen=True, slots=True)
class Step:
    """One tree that the target scored for the run's own sequence, and what came of it."""

    tokens: tuple[int, ...]  # of the nodes; node 0 is the pending token
    parents: tuple[int, ...]
    scored_only: tuple[bool, ...]  # read back, never accepted
    score: tuple[float, ...]  # estimated acceptance
    source: tuple[str, ...]  # who drafted a node
    path: tuple[int, ...]  # accepted nodes, the root first
    first: int  # place of its first token in the output
    count: int  # tokens that it gave out
    own: int | None  # the token that the model itself chose behind the path, where it was given out

    @property
    def drafted(self) -> int:
        """Nodes that could have been accepted."""
        return len(self.tokens) - 1 - sum(self.scored_only)

    @property
    def kept(self) -> int:
        """Drafted tokens that were accepted and given out: not what lies behind an end of text."""
        return min(max(len(self.path) - 1, 0), self.count)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a token of the output comes from."""

    step: int | None  # none: the prompt's forward, or a method that chooses among whole answers
    source: str | None  # who drafted it; none: the model itself


@dataclass(slots=True)
class Log:
    """The steps of a run and the origin of every token. Both only grow, so that another thread may read them."""

    steps: list[Step] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    _tree: DraftTree | None = None  # scored, and not come to anything yet
    _length: int = 0  # of the sequence when it was

    def follow(self, run: Run, request: Request | None) -> None:
        """A decoder asks for something, or (None) has ended: note what came of its last tree."""
        new = run.output[len(self.origins) :]
        tree, self._tree = self._tree, None
        if tree is not None and (new or len(tree) > 1):
            self._note(tree, run.sequence.tokens[self._length :], new)
        else:
            self.origins += [Origin(None, None)] * len(new)
        if isinstance(request, Forward) and request.sequence is run.sequence and not run.sequence.drafts:
            self._tree, self._length = request.tree, len(run.sequence)

    def _note(self, tree: DraftTree, committed: list[int], new: list[int]) -> None:
        path = _path(tree, committed)
        kept = 0
        while kept < min(len(path) - 1, len(new)) and tree.tokens[path[kept + 1]] == new[kept]:
            kept += 1
        number = len(self.steps)
        self.steps.append(
            Step(
                tuple(tree.tokens),
                tuple(tree.parents),
                tuple(tree.scored_only),
                tuple(tree.score),
                tuple(tree.source),
                tuple(path),
                len(self.origins),
                len(new),
                new[kept] if kept < len(new) else None,
            )
        )
        self.origins += [Origin(number, tree.source[node] or UNNAMED) for node in path[1 : kept + 1]]
        self.origins += [Origin(number, None)] * (len(new) - kept)


def watched(run: Run, decoder: Decoder[None], log: Log) -> Decoder[None]:
    """The decoder as it is, its steps noted in `log`."""
    reply: Any = None
    try:
        while True:
            try:
                request = decoder.send(reply)
            except StopIteration:
                log.follow(run, None)
                return
            log.follow(run, request)
            reply = yield request
    finally:
        decoder.close()


def _path(tree: DraftTree, committed: list[int]) -> list[int]:
    """The nodes of a tree that these tokens are, from its root; none where they are no path of it."""
    if not committed or committed[0] != tree.tokens[0]:
        return []
    edges, path = tree.edges(), [0]
    for token in committed[1:]:
        node = edges.get((path[-1], token))
        if node is None:
            return []
        path.append(node)
    return path
