"""SpecExtend: on a long text the draft model reads with a small working cache that the target's attention chooses.

A draft that attends to everything is slow and, trained on short texts, wrong. Per run:
1. The draft reads the text once and keeps all of its rows; the text is cut into chunks of `chunk` tokens.
2. In every `every`-th verification the target's last layer shows what the last accepted token attends to: the mean over
   heads, averaged over a chunk, ranks the chunks.
3. The draft's rows of the best `chunks` chunks and of the newest one, in the order of the text, are the working cache;
   they are numbered as if nothing lay between them. Before the first retrieval these are the latest chunks.
4. Over it the draft grows a tree (OPT-Tree): of each level the `width` likeliest nodes, as long as a level adds at
   least `gain` to the sum of the `nodes` best path probabilities; those nodes are kept. Samples are drafted as a chain.
5. The target verifies over everything; what is accepted stays in the working cache until the next retrieval.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import CapabilityError, DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Outcome, WithDraft
from segue.models.companion import companion
from segue.models.draft import Draft, chain
from segue.models.run import Request, Run

RENUMBER = ("auto", "on", "off")


@dataclass(slots=True)
class Working:
    """The draft's two readings of the text: all of it, and what it drafts from."""

    full: Draft
    renumber: bool
    work: Draft | None = None
    text: list[int] = field(default_factory=list)  # the working cache's tokens when it was taken
    cut: int = 0  # tokens of the whole text at that time
    chunks: list[int] | None = None  # chosen by the target; None: the latest
    due: bool = True  # the working cache is to be taken anew
    rounds: int = 0  # since the target was asked


@dataclass(frozen=True)
class Specextend(WithDraft):
    """A draft model for long texts, whose step costs the same however long they get."""

    card = Card(
        paper=Paper(
            id="2505.20776",
            title="SpecExtend: A Drop-in Enhancement for Speculative Decoding of Long Sequences",
            year=2025,
        ),
        claim=Claim(value=2.22, unit="speed-up", baseline="tree speculation", setting="up to 16K tokens, at best"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "attention weights", "tree attention"),
        departs="10 nodes a level instead of 50; samples are drafted as a chain; the draft catches up with its full "
        "reading when a retrieval is due; its own context still bounds the text",
        check="long",
    )

    chunk: int = 32  # tokens of a chunk
    chunks: int = 32  # chunks retrieved
    every: int = 4  # verifications between retrievals
    depth: int = 10  # levels of the tree, at most; tokens of a sampled chain
    nodes: int = 50  # nodes of the tree
    width: int = 10  # nodes of a level
    gain: float = 0.7  # a level that adds less to the expected length is the last
    renumber: str = "auto"  # move the working cache together: on, off, auto (where keys can be turned)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk", "chunks", "every", "depth", "nodes", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain={self.gain} is not allowed: from 0 to less than 1")
        if self.renumber not in RENUMBER:
            raise ValueError(f"renumber={self.renumber!r} is not allowed: {', '.join(RENUMBER)}")

    def price(self, run: Run, tokens: int) -> float:
        return min(tokens, self.depth) * companion(run.lm, self.draft).cost.step(self.width)

    def start(self, run: Run) -> Working:
        lm = companion(run.lm, self.draft)
        renumber = self.renumber != "off"
        if renumber:
            try:
                lm.turn()
            except CapabilityError as error:
                if self.renumber == "on":
                    raise CapabilityError(f"renumber='on' cannot be: {error}") from None
                renumber = False
                run.stats.note = f"the working cache keeps the text's positions: {error}"
        return Working(Draft(lm.reading(run.source), run.lm.vocab_size), renumber)

    def wanted(self, state: Working) -> Want:
        ask = state.rounds + 1 >= self.every
        return Want(attention=((-1,), None)) if ask else Want()

    def propose(self, run: Run, state: Working, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        depth = min(self.depth, budget.depth, budget.nodes, state.full.room(run))
        if depth < 1:
            return DraftTree.root(run.ids[-1])
        if state.due or state.work is None:
            yield from self._retrieve(run, state)
        work = state.work
        assert work is not None
        if run.target.argmax:
            return (yield from self._grow(run, state, work, depth))
        shadow = DraftTree.root(run.ids[-1])

        def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
            if len(ids) > len(run.ids):
                shadow.add(len(shadow) - 1, ids[-1])
            rows = yield from work.rows(self._text(run, state), shadow)
            return rows[-1]

        return (yield from chain(run, depth, read, "specextend"))

    def rewind(self, run: Run, state: Working) -> None:
        raise ValueError("specextend cannot draft for a draft model: its cache follows a text that is never cut back")

    def observe(self, run: Run, state: Working, outcome: Outcome) -> None:
        state.rounds += 1
        if state.work is not None:
            # Lengths of a renumbered text are its own: nothing of it lies behind the target's.
            state.work.settle(run.sequence, [outcome.tree.tokens[node] for node in outcome.path])
        if outcome.scores.attention:
            (weights,) = outcome.scores.attention.values()
            past = weights.shape[-1] - len(outcome.tree)
            state.chunks = best_chunks(weights[:, outcome.path[-1], :past], self.chunk, self.chunks)
            state.due, state.rounds = True, 0

    def _text(self, run: Run, state: Working) -> list[int]:
        """The text as the working cache has it, to the pending token."""
        return state.text + run.ids[state.cut :]

    def _retrieve(self, run: Run, state: Working) -> Generator[Request, Scores, None]:
        """Take the working cache anew from the draft's full reading."""
        length = len(run.ids) - 1
        if len(state.full.sequence) < length:
            yield from state.full.read(run.ids[:-1])
        newest = (length - 1) // self.chunk  # the chunk that still grows
        chosen = state.chunks if state.chunks is not None else range(max(0, newest - self.chunks), newest)
        kept = sorted({*chosen, newest})
        places = [i for c in kept for i in range(c * self.chunk, min((c + 1) * self.chunk, length))]
        if state.work is not None:
            state.work.sequence.release()
        rows = torch.tensor(places)
        if state.renumber:
            sequence = state.full.sequence.excerpt(rows)
        else:
            lm = state.full.sequence.lm
            layers = set(range(lm.layers)) - lm.windowed if len(places) < length else set()
            sequence = state.full.sequence.view(dict.fromkeys(layers, rows))
        state.work = Draft(sequence, run.lm.vocab_size)
        state.text, state.cut, state.due = list(sequence.tokens), length, False

    def _grow(self, run: Run, state: Working, work: Draft, depth: int) -> Generator[Request, Scores, DraftTree]:
        """OPT-Tree: level by level while it pays, each node with its probability under the draft."""
        tree = DraftTree.root(run.ids[-1])
        paths = [1.0]  # of every node the product of the probabilities down to it
        level, expected = [0], 0.0
        for _ in range(depth):
            rows = yield from work.rows(self._text(run, state), tree)
            candidates = []
            for node, row in zip(level, rows, strict=True):
                tree.rows[node] = row
                p, ids = row.float().softmax(-1).topk(min(self.width, row.shape[-1]))
                pairs = zip(p.tolist(), ids.tolist(), strict=True)
                candidates += [(paths[node] * share, node, token, share) for share, token in pairs]
            best = heapq.nlargest(self.width, candidates, key=lambda c: c[0])
            level = []
            for product, node, token, share in best:
                level.append(tree.add(node, token, score=share, source="specextend"))
                paths.append(product)
            total = sum(heapq.nlargest(self.nodes, paths[1:]))
            if total - expected < self.gain:
                break
            expected = total
        return tree.truncate(self.nodes + 1)


def best_chunks(weights: Tensor, chunk: int, count: int) -> list[int]:
    """The `count` whole chunks of highest mean attention, ascending, from one query's weights (H, rows)."""
    score = weights.float().mean(0)
    whole = score.shape[0] // chunk
    if not whole:
        return []
    means = score[: whole * chunk].view(whole, chunk).mean(1)
    return sorted(means.topk(min(count, whole)).indices.tolist())
