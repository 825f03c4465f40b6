"""The ancestral loop: one token per forward, drawn from what a method makes of the model's row.

A method may change the row before the request's settings act on it (`mix`), the distribution that they leave
(`reshape`), or both; and it may have further prompts read beside the request's own, each followed by the same output
(`streams`). All of them are read in one forward per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segue.data import DraftTree, Scores, Want
from segue.models.run import Decoder, Forward, Prefill, Run, gather, side_by_side
from segue.models.sequence import Mark, Sequence

LAST = Want(logits="last")


@dataclass(frozen=True)
class Sampling:
    """Draws token by token. At temperature 0 the token is the arg-max of `mix`."""

    def streams(self, run: Run) -> list[list[int]]:
        """Further prompts (of an encoder-decoder: sources) that are followed by the same output."""
        return []

    def mix(self, rows: list[Tensor]) -> Tensor:
        """The scores (V,) that take the place of the model's logits, from those of the request's own text and of every
        stream, in order."""
        return rows[0]

    def reshape(self, p: Tensor) -> Tensor:
        """What is drawn from (V,), given the distribution that the request's settings leave. Not asked at
        temperature 0, so it must keep the likeliest token the likeliest."""
        return p

    def run(self, run: Run) -> Decoder[None]:
        others = [_open(run, prompt) for prompt in self.streams(run)]
        sequences = [run.sequence, *(sequence for sequence, _ in others)]
        try:
            scores = yield from side_by_side([run.prefill(LAST), *(_read(*other) for other in others)])
            while run.emit([self._pick(run, scores)], scores[0], [-1]):
                root = DraftTree.root(run.ids[-1])
                scores = yield from gather([Forward(sequence, root, LAST) for sequence in sequences])
                for sequence in sequences:
                    sequence.commit([0])
        finally:
            for sequence, _ in others:
                sequence.release()

    def _pick(self, run: Run, scores: list[Scores]) -> int:
        row = self.mix([s.row(-1) for s in scores])
        if run.target.greedy:
            return int(run.target.processed(row, run.ids).argmax())
        return run.chance.index(self.reshape(run.target.p(row, run.ids)))


def _open(run: Run, prompt: list[int]) -> tuple[Sequence, list[int]]:
    """A second text beside the run's own, and what is to be read of it before the output."""
    lm = run.lm
    lm.check_prompt(prompt)
    tokens = list(lm.start_ids or prompt)
    if len(tokens) + run.max_tokens - 1 > lm.context_length:
        raise ValueError(
            f"a second prompt of {len(tokens)} tokens and the answer of up to {run.max_tokens} do not fit the context "
            f"of {lm.context_length}: lower max_tokens or shorten it"
        )
    return lm.reading(prompt if lm.start_ids else []), tokens


def _read(sequence: Sequence, tokens: list[int]) -> Decoder[Scores]:
    scores = yield Prefill(sequence, tokens, LAST)
    return scores


def common(lists: list[list[int]]) -> list[int]:
    """What all lists begin with."""
    first, last = min(lists), max(lists)
    pairs = zip(first, last, strict=False)
    size = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))
    return first[:size]


def reach(run: Run, tokens: list[int]) -> Decoder[None]:
    """Bring the run's sequence to these tokens: back to what it shares with them, then on."""
    shared = len(common([run.sequence.tokens, tokens]))
    run.sequence.rollback(Mark(shared, None))
    if shared < len(tokens):
        yield Prefill(run.sequence, tokens[shared:], Want(logits="none"))


def read(run: Run, ids: list[int]) -> Decoder[Scores]:
    """The row after `ids`, of which the run's sequence may have read a part, or something else."""
    shared = len(common([run.sequence.tokens, ids[:-1]]))
    run.sequence.rollback(Mark(shared, None))
    chain = DraftTree.chain(ids[shared:])
    scores = yield Forward(run.sequence, chain, LAST)
    run.sequence.commit(list(range(len(chain))))
    return scores
