"""`segue embed`: sentence vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli import flags, report, texts


def embed(
    given: Annotated[
        list[str] | None, typer.Argument(metavar="TEXTS", help="The texts; '-', or nothing in a pipe, reads stdin.")
    ] = None,
    file: texts.File = None,
    jsonl: texts.Lines = False,
    embedder: Annotated[
        str, typer.Option("-m", "--embedder", metavar="FOLDER", help="Folder of an encoder, or the packaged minilm.")
    ] = "minilm",
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Numbers of a vector, where the encoder was trained to be cut.")
    ] = None,
    truncate: texts.Truncate = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a .npy matrix, or .jsonl with the lines' own fields.")
    ] = None,
    json: flags.Json = False,
) -> None:
    """Turn texts into vectors of length 1. stdout is one list of numbers a line, in the texts' order.

    With --json: one object {"model", "dimensions", "data": [{"index", "text", "embedding"}]}. With --output: nothing.
    """
    if output is not None and output.suffix not in (".npy", ".jsonl"):
        raise ValueError(f"--output {output}: .npy for a matrix or .jsonl for lines")
    if output is not None and json:
        raise ValueError("--json prints and --output writes: give one of them")
    if output is not None:
        flags.check_output(output)
    records = texts.read(given, file, jsonl)
    from segue.models.embedding import encoder

    model = encoder(embedder)
    model.check_width(dimensions)
    vectors = []
    for number, record in enumerate(records, start=1):
        try:
            vectors.append(model.vector(model.tokens(record["text"], cut=truncate), dimensions))
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from None
    if output is not None:
        _write(output, records, vectors)
    elif json:
        data = [{"index": i, **record, "embedding": row.tolist()} for i, (record, row) in _numbered(records, vectors)]
        print(report.as_json({"model": model.name, "dimensions": len(vectors[0]), "data": data}))
    else:
        for row in vectors:
            print(report.as_json(row.tolist()))


def _numbered(records: list[dict[str, Any]], vectors: list[Any]) -> Any:
    return enumerate(zip(records, vectors, strict=True))


def _write(output: Path, records: list[dict[str, Any]], vectors: list[Any]) -> None:
    if output.suffix == ".npy":
        import numpy as np

        np.save(output, np.stack([row.numpy() for row in vectors]))
        return
    lines = [
        report.as_json({**record, "embedding": row.tolist()}) for record, row in zip(records, vectors, strict=True)
    ]
    output.write_text("".join(line + "\n" for line in lines))
