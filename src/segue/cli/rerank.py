"""`segue rerank`: documents by how well they fit a query."""

from __future__ import annotations

from typing import Annotated

import typer

from segue.cli import flags, report, texts


def rerank(
    query: Annotated[str, typer.Argument(help="What is looked for.")],
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCUMENTS", help="The documents; '-', or nothing in a pipe, reads stdin."),
    ] = None,
    file: texts.File = None,
    jsonl: texts.Lines = False,
    reranker: Annotated[
        str | None, typer.Option("-m", "--reranker", metavar="FOLDER", help="Folder of a cross-encoder.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Rank by cosines of an encoder instead; minilm, the packaged one, if both "
                     "are left out."),
    ] = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Show only the best.")] = None,
    truncate: texts.Truncate = False,
    json: flags.Json = False,
) -> None:  # fmt: skip
    """Rank documents, the best first. stdout is a line a document: score, its number from 0, text, with tabs between.

    With --json: one object {"model", "scored_by", "results": [{"index", "relevance_score", "text"}]}. Scores are
    probabilities of a cross-encoder, or cosines.
    """
    if reranker is not None and embedder is not None:
        raise ValueError("--reranker and --embedder are two ways to rank: give one of them")
    records = texts.read(given, file, jsonl)
    documents = [record["text"] for record in records]
    from segue.models.ranking import judge, rank

    model = judge(reranker, embedder)
    ranked = rank(model, query, documents, cut=truncate)[:top_n]
    if json:
        results = [{"index": i, "relevance_score": score, **records[i]} for i, score in ranked]
        print(report.as_json({"model": model.name, "scored_by": model.scored_by, "results": results}))
        return
    for i, score in ranked:
        print(f"{score:.4f}\t{i}\t{documents[i]}")
