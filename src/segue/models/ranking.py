"""Documents ranked by how well they fit a query: by a cross-encoder's probability, or by the cosine of two vectors."""

from __future__ import annotations

import math
from collections.abc import Generator
from collections.abc import Sequence as Seq

from segue.models.crossencoder import CrossEncoder, cross_encoder
from segue.models.embedding import PACKAGED, Encoder, encoder

Ranked = list[tuple[int, float]]  # (number of the document, score), the best first


def judge(reranker: str | None, embedder: str | None) -> CrossEncoder | Encoder:
    """The model that ranks; the packaged encoder where none is named."""
    return cross_encoder(reranker) if reranker is not None else encoder(embedder or PACKAGED)


def rank(model: CrossEncoder | Encoder, query: str, documents: Seq[str], *, cut: bool = False) -> Ranked:
    """All documents, the best first, equal ones as they came. ValueError for a text that is too long, unless it may be
    `cut`."""
    work = ranking(model, query, documents, cut)
    while True:
        try:
            next(work)
        except StopIteration as end:
            ranked: Ranked = end.value[0]
            return ranked


def ranking(
    model: CrossEncoder | Encoder, query: str, documents: Seq[str], cut: bool
) -> Generator[None, None, tuple[Ranked, int]]:
    """The same, pausing after each text, and how many tokens were read. All texts are read as tokens first, so that
    what is wrong is told before the work."""
    scores: list[float] = []
    if isinstance(model, CrossEncoder):
        pairs = []
        for document in documents:
            pairs.append(model.tokens(query, document, cut=cut))
            yield
        for pair in pairs:
            scores.append(model.score(pair))
            yield
        tokens = sum(len(pair["input_ids"]) for pair in pairs)
    else:
        rows = []
        for text in (query, *documents):
            rows.append(model.tokens(text, cut=cut))
            yield
        asked = model.vector(rows[0])
        for row in rows[1:]:
            scores.append(float(asked @ model.vector(row)))
            yield
        tokens = sum(map(len, rows))
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # log-odds: probabilities far out are all 1
    shown = [sigmoid(score) for score in scores] if isinstance(model, CrossEncoder) else scores
    return [(i, shown[i]) for i in order], tokens


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), also far out."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
