"""Pasts for texts that are read in any order: a few sequences, and every new text goes on from the one most like it.

Searches that jump between texts would otherwise keep the past of everything that may still be continued. Here a past
that was given up costs a few rows again, never a wrong result: what a text needs is found by its tokens alone.
"""

from __future__ import annotations

from segue.choose.parts.hypothesis import Hypothesis
from segue.data import DraftTree, Scores, Want
from segue.models.run import Decoder, Forward, Run, gather
from segue.models.sequence import Mark, Sequence


class Pasts:
    """At most `size` sequences beside the prompt's own, which must have been read; the one that was of no use longest
    is given up first."""

    def __init__(self, run: Run, size: int) -> None:
        self._run = run
        self._size = size
        self._kept: list[Sequence] = []  # the one used last stands last

    def read(self, hypotheses: list[Hypothesis], want: Want | None = None) -> Decoder[list[Scores]]:
        """Read so many texts in one forward, at most `size`, each of one token at least: sets their rows. Gives the
        scores of what was read anew, of the last tokens of every text, as many as it took."""
        if len(hypotheses) > self._size:
            raise ValueError(f"{len(hypotheses)} texts at once are not allowed: at most size={self._size}")
        chosen: list[Sequence] = []
        asked: list[Forward] = []
        for hypothesis in hypotheses:
            sequence = self._nearest(hypothesis.tokens, chosen)
            chosen.append(sequence)
            new = hypothesis.tokens[len(sequence) - self._run.prompt_length :]
            asked.append(Forward(sequence, DraftTree.chain(new), want or Want(logits="last")))
        scores = yield from gather(list(asked))
        for hypothesis, request, found in zip(hypotheses, asked, scores, strict=True):
            request.sequence.commit(list(range(len(request.tree))))
            hypothesis.row = found.row(-1)
        return scores

    def release(self) -> None:
        """Give up all of them."""
        for sequence in self._kept:
            sequence.release()
        self._kept.clear()

    def _nearest(self, tokens: list[int], taken: list[Sequence]) -> Sequence:
        """A sequence over a beginning of these tokens that lacks the last one at least: one that is all such a
        beginning goes on itself, of another one the part is shared."""
        source = max([self._run.sequence, *self._kept], key=lambda s: self._common(s, tokens))
        length = self._run.prompt_length + self._common(source, tokens)
        free = source is not self._run.sequence and all(source is not other for other in taken)
        if not (free and len(source) == length):
            shared = source
            source = shared.fork()
            source.rollback(Mark(length, None))
            idle = [s for s in self._kept if all(s is not other for other in taken)]
            if len(self._kept) >= self._size:
                self._kept.remove(idle[0])
                idle[0].release()
        else:
            self._kept.remove(source)
        self._kept.append(source)
        return source

    def _common(self, sequence: Sequence, tokens: list[int]) -> int:
        """Tokens that a sequence's output and the text without its last token begin with alike."""
        start = self._run.prompt_length
        most = min(len(sequence) - start, len(tokens) - 1)
        return next((i for i in range(most) if sequence.tokens[start + i] != tokens[i]), most)
