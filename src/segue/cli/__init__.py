"""The `segue` command: one file per command, and the frame here that turns user errors into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import segue
from segue import cluster
from segue.cli import (
    bench,
    chat,
    convert,
    daemon,
    doctor,
    draft_study,
    embed,
    generate,
    index,
    methods,
    rerank,
    run,
    serve,
    train,
    tune,
    ui,
    view,
)

BROKEN_PIPE = 128 + 13  # what the shell reports of a program that the signal ended
INTERRUPTED = 128 + 2

app = typer.Typer(
    name="segue",
    help="Decode language models in segments: published speculative and parallel methods, one engine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(run.run)
app.command()(methods.methods)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.command()(tune.tune)
app.command()(convert.convert)
app.command()(train.train)
app.command()(serve.serve)
app.command()(embed.embed)
app.command()(rerank.rerank)
app.command()(ui.ui)
app.add_typer(view.app, name="view")
app.add_typer(index.app, name="index")
app.add_typer(daemon.app, name="daemon")
app.add_typer(draft_study.app, name="draft-study")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segue {segue.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 where some lines of a job failed, 2 for a user's error.

    SEGUE_DEBUG=1 shows the traceback of a user's error; any other exception is a bug and always shows it.
    """
    # OpenMP threads that spin for long while they wait slow each other down many times over as soon as another process
    # wants a core (LOG.md). The variable is read when torch is imported, which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # PyTorch keeps what oneDNN needs for a product once for every number of rows that drafts ever had, 1024 of them by
    # default. 256 are some 100 MB less, and nothing was slower (LOG.md). It is read when torch first multiplies.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "256")
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    cluster.leave(code if arguments is None else None)
    return code


def _run(arguments: list[str]) -> int:
    """The exit code of a command, whose errors are told here."""
    try:
        code = _invoke(arguments or ["--help"])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _mute(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.TyperException as error:
        return _complain(error.format_message())
    except (ValueError, OSError) as error:
        if os.environ.get("SEGUE_DEBUG"):
            raise
        _mute_if_broken(sys.stdout)
        return _complain(_reason(error))


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("segue", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _reason(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


def _complain(message: str) -> int:
    from rich.console import Console
    from rich.text import Text

    line = Text("error: " + " ".join(message.split()), style="red")
    Console(stderr=True).print(line, soft_wrap=True)
    return 2


def _mute_if_broken(stream: Any) -> None:
    try:
        stream.flush()
    except OSError:
        _mute(stream)


def _mute(stream: Any) -> None:
    """Send what is left in the buffer nowhere: the interpreter flushes once more at exit and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
