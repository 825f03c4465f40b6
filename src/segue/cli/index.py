"""`segue index`: datastores that retrieval drafts from."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import segue
from segue import catalog
from segue.cli import flags, report

app = typer.Typer()


@app.callback(invoke_without_command=True)
def index(context: typer.Context) -> None:
    """Build and look at datastores, from which the methods rest and dresd draft."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def build(
    corpus: Annotated[list[Path], typer.Argument(help="JSONL files (text, or prompt and response), or plain texts.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STORE", help="Folder of the store to make.")],
    model: flags.Model = None,
    kind: Annotated[str, typer.Option(help="suffix: equal text, for rest; dense: like states, for dresd.")] = "suffix",
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the kind; repeatable.")
    ] = None,
    respond: Annotated[
        int | None, typer.Option(help="The corpus gives prompts; the model answers with so many tokens at most.")
    ] = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a store, once the new one is whole.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a build that was cut short.")] = False,
    json: flags.Json = False,
) -> None:
    """Make a datastore of a corpus, or of the model's own answers to its prompts.

    A suffix store serves every model with the same tokenizer, a dense one only the model that read the corpus.
    Options of dense: dims (64), search (flat, ivf, hnsw), window (512), sample (200000).
    """
    from segue.decode.speculative.store.build import build as make
    from segue.decode.speculative.store.build import may_build
    from segue.decode.speculative.store.corpus import Document, read_corpus

    chosen = _kind(kind, flags.assignments(fields))
    if respond is not None and respond < 1:
        raise ValueError(f"--respond {respond} is not allowed: at least 1")
    may_build(output, force, resume)
    texts = read_corpus(corpus, prompts=respond is not None)
    begun = time.perf_counter()
    lm = segue.model(model, **flags.placed(None, dtype=dtype, device=device, backend=backend, quantize=quantize))

    def read(documents: Sequence[Document]) -> list[list[int]]:
        return _read(lm, documents, respond)

    facts = {"files": texts.files, "respond": respond}
    command = shlex.join(["segue", "index", "build", *map(str, corpus), "-o", str(output), "--kind", kind])
    command += "".join(f" --set {shlex.quote(item)}" for item in fields or [])
    command += (f" -m {shlex.quote(model)}" if model else "") + (f" --respond {respond}" if respond else "")
    with report.progress() as progress:
        try:
            make(output, chosen, lm.lm, texts.documents, read, corpus=facts, command=command, force=force,
                 resume=resume, progress=progress)  # fmt: skip
        except KeyboardInterrupt:
            report.note("interrupted; the same command with --resume goes on where it was")
            raise
    summary = _summary(output) | {"seconds": round(time.perf_counter() - begun, 3)}
    print(report.as_json(summary) if json else _words(summary))


@app.command()
def table(
    corpus: Annotated[list[Path], typer.Argument(help="JSONL files (text, or prompt and response), or plain texts.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The table to make.")],
    model: flags.Model = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a table, once the new one is whole.")] = False,
    json: flags.Json = False,
) -> None:
    """Make a table of a corpus's trigrams, for aded. It serves every model with the same tokenizer."""
    from segue.decode.speculative.store.base import identity
    from segue.decode.speculative.store.corpus import read_corpus
    from segue.decode.speculative.store.trigram import build as make

    flags.check_output(output, force=force)
    texts = read_corpus(corpus, prompts=False)
    lm = segue.model(model)
    with report.progress() as progress:
        documents = (_read(lm, [document], None)[0] for document in texts.documents)
        count = len(texts.documents)
        pairs = make(
            documents,
            output,
            identity(lm.lm),
            progress=lambda done: progress("counting", done, count),
        )
    summary = {"table": str(output), "pairs": pairs, "documents": count, "bytes": output.stat().st_size}
    words = f"{output}: successors of {pairs:,} pairs from {report.counted(count, 'document')}"
    print(report.as_json(summary) if json else words)


@app.command()
def info(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a datastore.")],
    check: Annotated[bool, typer.Option("--check", help="Read all files of a store, however large.")] = False,
    json: flags.Json = False,
) -> None:
    """Show what a datastore holds and how it was made. A damaged one is an error."""
    from segue.decode.speculative.store.base import read_meta
    from segue.decode.speculative.store.dense import DenseStore
    from segue.decode.speculative.store.suffix import SuffixStore

    meta = read_meta(store)
    kinds = {cls.kind: cls for cls in (SuffixStore, DenseStore)}
    if meta["kind"] not in kinds:
        raise ValueError(f"{store} is a {meta['kind']} store, and there are {' and '.join(kinds)}")
    kinds[meta["kind"]].open(store, thorough=check)
    summary = _summary(store)
    if json:
        print(report.as_json(summary))
        return
    print(_words(summary))
    for file in summary["corpus"]["files"]:
        print(f"  {file['path']}: {report.counted(file['documents'], 'document')}, sha256 {file['sha256'][:12]}")
    print(f"  {summary['command']}")


def _kind(name: str, fields: dict[str, str]) -> Any:
    from segue.decode.speculative.store.dense import Dense
    from segue.decode.speculative.store.suffix import Suffix

    kinds: dict[str, Any] = {"suffix": Suffix, "dense": Dense}
    if name not in kinds:
        raise ValueError(f"--kind {name} is not known: choose from {', '.join(kinds)}")
    known = {f.name: catalog.Field(f.name, str(f.type), f.default, "") for f in dataclasses.fields(kinds[name])}
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"a {name} store has no option {field!r}: {hint}")
    return kinds[name](**{field: catalog.convert(name, known[field], value) for field, value in fields.items()})


def _read(lm: Any, documents: Sequence[Any], respond: int | None) -> list[list[int]]:
    """Token ids of documents, answered by the model where it shall."""
    texts = []
    for document in documents:
        try:
            ids = document.ids(lm.lm)
            if respond is not None:
                lm.lm.check_prompt(ids)
        except ValueError as error:
            raise ValueError(f"{document.place}: {error}") from None
        texts.append(ids)
    if respond is None:
        return texts
    answers = lm.generate(texts, method="plain", max_tokens=respond)
    return [[*text, *answer.tokens] for text, answer in zip(texts, answers, strict=True)]


def _summary(store: Path) -> dict[str, Any]:
    from segue.decode.speculative.store.base import read_meta

    meta = read_meta(store)
    size = sum(file["bytes"] for file in meta["files"].values())
    keys = meta["arrays"]["places"]["shape"][0] if "places" in meta["arrays"] else None
    names = ("kind", "model", "documents", "tokens", "options", "corpus", "command")
    return {"store": str(store)} | {name: meta[name] for name in names} | {"keys": keys, "bytes": size}


def _words(summary: dict[str, Any]) -> str:
    keys = f", {summary['keys']:,} keys" if summary["keys"] is not None else ""
    return (
        f"{summary['store']}: {summary['kind']} store for {summary['model']['name']}, "
        f"{report.counted(summary['documents'], 'document')}, {report.counted(summary['tokens'], 'token')}{keys}, "
        f"{summary['bytes'] / 2**20:,.1f} MiB"
    )
