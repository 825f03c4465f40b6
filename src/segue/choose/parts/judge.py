"""A language model as a judge: the grade that it would give an answer, as an expectation over its grade tokens.

1. The judge reads the task and the request once; for each reference a fork reads that one, and for each answer to grade
   a fork of it reads the answer and the question for a grade. So a pair costs the tokens of one answer.
2. The row after that question, softmax over the tokens of the grades alone, gives P(s); the utility is sum of s P(s).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from segue.choose.parts.rerank import Drawn
from segue.choose.parts.utility import Matrix, Utility
from segue.data import Want
from segue.models.companion import beside
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Prefill, Run, gather
from segue.models.sequence import Sequence

Piece = str | tuple[int, ...]  # text, or token ids where the judge has no tokenizer
AT_ONCE = 32  # forks of the judge's sequence that are held at a time
TASK = (
    "Grade how well an answer does what the request asks. The reference answer is a good one: the nearer the answer is "
    "to it in meaning, the better. 1 is the worst grade, 5 the best.\n\nRequest:\n"
)
ALONE = "Grade how well an answer does what the request asks. 1 is the worst grade, 5 the best.\n\nRequest:\n"


@dataclass(frozen=True)
class Judge(Utility):
    """Expected grade of an answer beside a reference, or alone where `references` are not shown."""

    lm: str | LM | None = None  # who judges; None: the model itself
    task: Piece = TASK  # before the request
    reference: Piece = "\n\nReference answer:\n"  # before the reference; an empty one shows no reference
    answer: Piece = "\n\nAnswer to grade:\n"  # before the answer
    question: Piece = "\n\nGrade (1 to 5):"  # after it
    grades: tuple[Piece, ...] = (" 1", " 2", " 3", " 4", " 5")  # worth 1, 2, ... in this order

    def scored(self, run: Run, candidates: Seq[Drawn], references: Seq[Drawn], wanted: Matrix) -> Decoder[Matrix]:
        judge = beside(run.lm, self.lm)
        shared = judge.encode(self.task) if isinstance(self.task, str) else list(self.task)
        request = _as_read(run, judge, run.prompt)
        shared = [*shared, *request]
        question, grades = self._question(judge)
        shown = [[*_ids(judge, self.reference), *_of(judge, r)] for r in references] if self.reference else [[]]
        shown = [[*ids, *_ids(judge, self.answer)] for ids in shown]
        asked = [[*_of(judge, c), *question] for c in candidates]
        longest = len(shared) + max(map(len, shown)) + max(map(len, asked))
        if longest > judge.context_length:
            raise ValueError(
                f"the judge {judge.name} would have to read {longest} tokens, and its context has "
                f"{judge.context_length}: shorten the prompt or the answers, or judge with another model"
            )
        found = np.zeros(wanted.shape)
        pairs = [(i, j) for j in range(len(shown)) for i in range(len(asked)) if wanted[i, j] > 0]
        run.stats.scorer_calls += len(pairs)
        root = judge.sequence() if not judge.start_ids else None
        if root is not None:
            yield Prefill(root, shared, Want(logits="none"))
        for start in range(0, len(pairs), AT_ONCE):
            group = pairs[start : start + AT_ONCE]
            rows = yield from _rows(judge, root, shared, shown, asked, group)
            for (i, j), row in zip(group, rows, strict=True):
                p = row.double()[grades].softmax(-1)
                found[i, j] = float((p * torch.arange(1, len(grades) + 1, device=p.device)).sum())
        if root is not None:
            root.release()
        return found

    def _question(self, judge: LM) -> tuple[list[int], list[int]]:
        """What stands before the grade, and the token by which the grades then differ."""
        if judge.tokenizer is None or not isinstance(self.question, str):
            endings = [[*_ids(judge, self.question), *_ids(judge, grade)] for grade in self.grades]
        else:  # as the tokenizer cuts the question with its answer
            endings = [judge.encode(f"{self.question}{grade}", special=False) for grade in self.grades]
        length = next(i for i in range(min(map(len, endings)) + 1) if len({tuple(e[:i]) for e in endings}) > 1) - 1
        grades = [e[length] for e in endings]
        if len(set(grades)) < len(grades):
            raise ValueError(f"grades={self.grades!r} are not told apart by one token of {judge.name}: give others")
        return endings[0][:length], grades


def _rows(
    judge: LM,
    root: Sequence | None,
    shared: list[int],
    shown: list[list[int]],
    asked: list[list[int]],
    pairs: list[tuple[int, int]],
) -> Decoder[list[torch.Tensor]]:
    """The judge's row (V,) where the grade of each pair is due."""
    if root is None:  # an encoder reads all of a pair
        sequences = [judge.reading([*shared, *shown[j], *asked[i]]) for i, j in pairs]
        requests: list[Forward | Prefill] = [Prefill(s, list(judge.start_ids), Want(logits="last")) for s in sequences]
    else:
        heads = {j: root.fork() for _, j in pairs}
        yield from gather([Prefill(head, shown[j], Want(logits="none")) for j, head in heads.items()])
        sequences = [heads[j].fork() for _, j in pairs]
        for head in heads.values():
            head.release()
        requests = [Prefill(s, asked[i], Want(logits="last")) for s, (i, _) in zip(sequences, pairs, strict=True)]
    scores = yield from gather(requests)
    rows = [score.row(-1) for score in scores]
    for sequence in sequences:
        sequence.release()
    return rows


def _ids(judge: LM, piece: Piece) -> list[int]:
    return judge.encode(piece, special=False) if isinstance(piece, str) else list(piece)


def _of(judge: LM, drawn: Drawn) -> list[int]:
    """An answer as the judge reads it."""
    return list(drawn.tokens) if judge.tokenizer is None else judge.encode(drawn.text, special=False)


def _as_read(run: Run, judge: LM, prompt: list[int]) -> list[int]:
    """The request as the judge reads it."""
    return list(prompt) if judge.tokenizer is None else judge.encode(run.lm.decode(prompt), special=False)
