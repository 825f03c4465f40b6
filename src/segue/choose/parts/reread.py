"""Whole texts that came together from several: what they are really worth, by reading them from the prompt on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from segue.choose.parts.hypothesis import Hypothesis, log_p, satisfied
from segue.data import DraftTree, Want
from segue.models.run import Decoder, Forward, Run, gather


def reread(run: Run, row: Tensor, texts: Iterable[tuple[int, ...]]) -> Decoder[list[Hypothesis | None]]:
    """The texts as finished hypotheses with the model's log-probabilities, in their order, all read at once; None for
    one that the request forbids or that ends earlier. `row` (V,) is the one behind the prompt."""
    texts = list(texts)
    asked = {}
    for i, text in enumerate(texts):
        if len(text) > 1:
            asked[i] = Forward(run.sequence.fork(), DraftTree.chain(text[:-1]), Want())
    scores = yield from gather(list(asked.values()))
    found: list[Hypothesis | None] = []
    told = dict(zip(asked, scores, strict=True))
    for i, text in enumerate(texts):
        rows = [row, *(told[i].row(node) for node in range(len(text) - 1))]
        found.append(_followed(run, rows, text))
    for request in asked.values():
        request.sequence.release()
    return found


def _followed(run: Run, rows: list[Tensor], text: tuple[int, ...]) -> Hypothesis | None:
    """A hypothesis made token by token, each from its row."""
    hypothesis = Hypothesis()
    for row, token in zip(rows, text, strict=True):
        if hypothesis.reason is not None:
            return None
        hypothesis.row = row
        logp = float(log_p(run, hypothesis)[token])
        if logp == float("-inf"):
            return None
        hypothesis = hypothesis.child(run, token, logp)
        hypothesis.parent = None
    return hypothesis if hypothesis.reason is not None and satisfied(run, hypothesis) else None
