"""A draft model that reads along with a run: one token at a time for chains, level by level for trees.

Its past is cut to what the target accepted. A tree grows in place: nodes that were scored already are not run again,
and the accepted ones become the draft's past without another forward. (A backend that keeps no rows of an open tree
scores the whole tree again instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager

import torch
from torch import Tensor

from segue.data import DraftTree, Scores, Want
from segue.models.companion import fit
from segue.models.run import Forward, Prefill, Request, Run
from segue.models.sequence import Mark, Sequence
from segue.ops.accept import without

Read = Callable[[list[int]], Generator[Request, Scores, Tensor]]  # all ids so far -> the draft's logits (V,) after them


def chain(
    run: Run,
    steps: int,
    read: Read,
    source: str,
    least: float = 0.0,
    go_on: Callable[[Tensor], bool] = lambda row: True,
) -> Generator[Request, Scores, DraftTree]:
    """Draft up to `steps` tokens one by one: the arg-max where the run is greedy, else drawn from q, warped as the
    target is. Ends behind a token at which the draft's largest probability was below `least`, or whose row of logits
    does not `go_on`; that token is kept, since to drop it for what it is would bias the samples."""
    tree = DraftTree.root(run.ids[-1])
    for step in range(steps):
        ids = run.ids + tree.tokens[1:]
        tree.rows[step] = row = yield from read(ids)
        sure = 1.0
        if run.target.argmax:
            if least:
                sure = float(row.float().softmax(-1).max())
            tree.add(step, int(row.argmax()), score=sure, source=source)
        else:
            tree.q[step] = q = run.target.p(row, ids)
            if least:
                sure = float(q.max())
            tree.add(step, run.chance.index(q), sampled=True, source=source)
        if sure < least or not go_on(row):
            break
    return tree


def given(run: Run, rows: Seq[Tensor]) -> Read:
    """Reads what is known already: rows (V,) of logits, the first for what follows the pending token."""
    length = len(run.ids)

    def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
        yield from ()
        return rows[len(ids) - length]

    return read


def prefix(run: Run, tree: DraftTree, node: int) -> list[int]:
    """All ids up to and with a node of a tree whose root is the pending token."""
    return run.ids[:-1] + [tree.tokens[i] for i in tree.path(node)]


def likeliest(run: Run, tree: DraftTree, node: int, row: Tensor, count: int, source: str) -> list[int]:
    """Add the `count` likeliest tokens after a node as its children, with the draft's probabilities as scores."""
    tree.rows[node] = row
    p = run.target.processed(row, prefix(run, tree, node)).softmax(-1)
    shares, tokens = p.topk(min(count, p.shape[-1]))
    pairs = zip(tokens.tolist(), shares.tolist(), strict=True)
    return [tree.add(node, token, score=share, source=source) for token, share in pairs if share > 0]


def draw(run: Run, tree: DraftTree, node: int, row: Tensor, count: int, source: str) -> list[int]:
    """Draw `count` children of a node from the draft's warped row q, with or without replacement as the tree says;
    fewer where q has no more tokens."""
    q = run.target.p(row, prefix(run, tree, node))
    tree.q[node], tree.rows[node] = q, row
    children: list[int] = []
    left = q
    support = count if tree.replacement else int((q > 0).sum())
    for _ in range(min(count, support)):
        token = run.chance.index(left)
        children.append(tree.add(node, token, sampled=True, source=source))
        if not tree.replacement:
            left = without(left, token)
    return children


def by_layers(sequence: Sequence, layers: Callable[[list[int]], tuple[int, ...] | None]) -> Read:
    """Reads a drafted text token by token on the target's own sequence, the last of the ids by the layers that `layers`
    names for them (None: all). For within `drafting`."""

    def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
        scores = yield Forward(sequence, DraftTree.root(ids[-1]), Want(logits="last", layers=layers(ids)))
        sequence.commit([0])
        return scores.row(-1)

    return read


@contextmanager
def drafting(sequence: Sequence) -> Iterator[None]:
    """Within the context forwards of the target's own sequence are drafts, of which nothing stays: rows are forgotten
    at its end and skipped layers lose nothing."""
    mark, drafts = sequence.mark(), sequence.drafts
    sequence.drafts = True
    try:
        yield
    finally:
        sequence.drafts = drafts
        sequence.rollback(mark)


class FirstLayers:
    """Tokens that the first layers of the target read one by one on its own sequence, until the others read them all at
    once from where these stopped."""

    def __init__(self, sequence: Sequence, count: int) -> None:
        self.count = count
        self.tokens: list[int] = []
        self._sequence = sequence
        self._mark = sequence.mark()
        self._states: list[Tensor] = []

    def read(self, token: int, *, logits: bool = False) -> Generator[Request, Scores, Scores]:
        """One more token: its state behind the last of these layers and, where wanted, the logits that the model's norm
        and head make of that."""
        want = Want(logits="all" if logits else "none", layers=tuple(range(self.count)), hidden=(self.count,))
        drafts, self._sequence.drafts = self._sequence.drafts, True  # no whole forward
        try:
            scores = yield Forward(self._sequence, DraftTree.root(token), want)
        finally:
            self._sequence.drafts = drafts
        self._sequence.commit([0])
        self.tokens.append(token)
        self._states.append(scores.hidden[self.count])
        return scores

    def chain(
        self, run: Run, steps: int, read: Read, source: str, go_on: Callable[[Tensor], bool] = lambda row: True
    ) -> Generator[Request, Scores, DraftTree]:
        """A drafted chain as `chain` makes it, of which the last token is read as well: all of it waits for the other
        layers. `read` reads by this object's `read`."""
        try:
            tree = yield from chain(run, steps, read, source, go_on=go_on)
            yield from self.read(tree.tokens[-1])
        finally:
            self.close()
        return tree

    def close(self) -> None:
        """Back to where it began; what was read waits for the other layers."""
        self._sequence.reopen(self._mark)

    @property
    def states(self) -> Tensor:
        """(n, D) behind the last of these layers."""
        return torch.cat(self._states)

    def rest(self, most: int | None = None) -> Want:
        """How the other layers read the tokens, or the first of them."""
        layers = tuple(range(self.count, self._sequence.lm.layers))
        return Want(layers=layers, states=self.states[:most])


def cut_back(draft: Sequence, text: list[int], known: int = 0) -> None:
    """Forget what a draft's past has beyond the text, and from where it is another one; so many tokens are known to be
    the same."""
    length = min(len(draft), len(text))
    if draft.tokens[known:length] != text[known:length]:
        length = next(i for i in range(known, length) if draft.tokens[i] != text[i])
    draft.rollback(Mark(length, None))


class Draft:
    """What a run keeps of its draft model. `sequence` may be one of another model or a view of the target's own."""

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        sequence.drafts = True
        self.sequence = sequence
        self.vocab_size = vocab_size  # the target's
        self._tree: DraftTree | None = None  # this round's nodes, behind the text that was missing
        self._offset = 0  # where the round's root lies in it

    def room(self, run: Run) -> int:
        """Tokens that the draft's context has left."""
        return self.sequence.lm.context_length - len(run.ids)

    def read(self, ids: list[int]) -> Generator[Request, Scores, Tensor]:
        """Read what is missing of `ids` and keep it; the draft's logits (V,) after the last id."""
        missing = ids[len(self.sequence) :]
        if len(self.sequence) == 0:
            scores = yield Prefill(self.sequence, missing, Want(logits="last"))
        else:
            scores = yield Forward(self.sequence, DraftTree.chain(missing), Want(logits="last"))
            self.sequence.commit(list(range(len(missing))))
        return fit(scores.row(-1), self.vocab_size)

    def rows(self, ids: list[int], tree: DraftTree) -> Generator[Request, Scores, list[Tensor]]:
        """Logits (V,) after every node of `tree`, whose root is the last of `ids`, that this round has not scored yet,
        in order. Further nodes may be added to the tree between calls."""
        if self._tree is None:
            missing = ids[len(self.sequence) : -1]
            if len(self.sequence) == 0 and missing:
                yield Prefill(self.sequence, missing, Want(logits="none"))
                missing = []
            self._tree = DraftTree.chain([*missing, ids[-1]])
            self._offset = len(missing)
            since = 0
        else:
            since = len(self._tree)
        known = len(self._tree) - self._offset
        for node in range(known, len(tree)):
            self._tree.add(self._offset + tree.parents[node], tree.tokens[node])
        first = since or self._offset
        nodes = range(first, len(self._tree))
        scores = yield Forward(self.sequence, self._tree, Want(logits=tuple(nodes), since=since))
        return [fit(scores.row(node), self.vocab_size) for node in nodes]

    def settle(self, sequence: Sequence, tokens: list[int]) -> None:
        """After a round: keep the nodes of the accepted `tokens` (root first) that were scored here, and forget what
        the target's `sequence` does not have."""
        if self._tree is not None:
            children = self._tree.children()
            path = list(range(self._offset + 1))
            for token in tokens[1:]:
                match = next((c for c in children[path[-1]] if self._tree.tokens[c] == token), None)
                if match is None:
                    break
                path.append(match)
            self.sequence.commit(path)
            self._tree = None
            known = len(sequence)
        else:  # what it read token by token was drafted, and others may have drafted what was accepted
            known = len(sequence) - len(tokens)
        cut_back(self.sequence, sequence.tokens, known)
