"""`segue view`: pictures of what a method does."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import segue
from segue.cli import flags, report

if TYPE_CHECKING:
    from segue.api import Model
    from segue.data import Settings

app = typer.Typer()


@app.callback(invoke_without_command=True)
def view(context: typer.Context) -> None:
    """Show what a method does, as a page of its own or as data."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def jacobi(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; '-', or nothing in a pipe, reads stdin.")] = None,
    model: flags.Model = None,
    mode: Annotated[str | None, typer.Option(help="hybrid, gauss_seidel or jacobi.")] = None,
    block: Annotated[int | None, typer.Option(help="Positions that are iterated together.")] = None,
    fields: flags.Set = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most: the columns of the table.")] = 32,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("jacobi.html"),
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    json: flags.Json = False,
) -> None:
    """Decode by Jacobi iteration and show which tokens were right before their turn (DDGviz).

    Writes one HTML page that needs nothing else; with --json the data behind it goes to stdout instead.
    """
    place = flags.placed(None, dtype=dtype, device=device, backend=backend)
    named = _fields(fields, mode=mode, block=block)
    lm, chosen, ids, settings = _asked("jacobi", named, prompt, max_tokens, None if json else output, model, place)
    data = _traced(lm, chosen, ids, settings)
    if json:
        print(report.as_json(data))
        return
    from segue.bench.dependency_page import page

    _write(output, page, data)
    report.note(f"{output}: {len(data['tokens'])} tokens in {report.counted(data['iterations'], 'iteration')}")


@app.command()
def lattice(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; '-', or nothing in a pipe, reads stdin.")] = None,
    model: flags.Model = None,
    merge: Annotated[str | None, typer.Option(help="Texts that end alike: zip, rcb or none.")] = None,
    calls: Annotated[int | None, typer.Option(help="Tokens that are read.")] = None,
    reference: Annotated[str | None, typer.Option(help="A text; the nearest one in the lattice is shown.")] = None,
    fields: flags.Set = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a text at most: the columns of the graph.")] = 24,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("lattice.html"),
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    json: flags.Json = False,
) -> None:
    """Search with recombination and show the graph of all texts that were found.

    Writes one HTML page that needs nothing else; with --json the data behind it goes to stdout instead.
    """
    place = flags.placed(None, dtype=dtype, device=device, backend=backend)
    named = _fields(fields, merge=merge, calls=calls)
    loaded, chosen, ids, settings = _asked("lattice", named, prompt, max_tokens, None if json else output, model, place)
    lm = loaded.lm
    from segue.bench.lattice import data, grown

    with report.progress() as show:
        answer = grown(lm, chosen, ids, settings, lambda read: show("reading", read, chosen.calls))
    shown = data(answer, lm, chosen, ids, settings, reference)
    if json:
        print(report.as_json(shown))
        return
    from segue.bench.lattice_page import page

    _write(output, page, shown)
    report.note(f"{output}: {answer.stats.note}")


def _asked(
    name: str,
    fields: dict[str, Any],
    prompt: str | None,
    max_tokens: int,
    page: Path | None,
    source: str | None,
    place: dict[str, Any],
) -> tuple[Model, Any, list[int], Settings]:
    """The model, the method, the prompt's tokens and the settings; what is wrong is told before a model is loaded."""
    from segue.api import make_settings
    from segue.cli.generate import read_prompt

    text = read_prompt(prompt, None, None)
    if page is not None:
        _check_page(page)
    method = flags.method(name, fields)
    settings = make_settings(max_tokens=max_tokens)
    model = segue.model(source, **place)
    return model, method, model.encode(text), settings


def _write(output: Path, page: Callable[[dict[str, Any], str], str], data: dict[str, Any]) -> None:
    output.write_text(page(data, "segue " + shlex.join(sys.argv[1:])), encoding="utf-8")


def _fields(assigned: list[str] | None, **named: Any) -> dict[str, Any]:
    """Fields of a method from options of their own and from --set."""
    own = {name: value for name, value in named.items() if value is not None}
    given: dict[str, Any] = flags.assignments(assigned)
    twice = sorted(own.keys() & given.keys())
    if twice:
        raise ValueError(f"--{twice[0]} and --set {twice[0]}={given[twice[0]]} are two values: give one of them")
    return given | own


def _check_page(output: Path) -> None:
    """What would keep the page from being written is told before any work."""
    if find_spec("jinja2") is None:
        raise ValueError("the page needs jinja2: pip install 'segue[bench]', or use --json")
    flags.check_output(output)


def _traced(model: Model, method: Any, prompt: list[int], settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    from segue.bench import dependency

    most = settings.max_tokens
    with report.progress() as show:
        graph = dependency.trace(
            model.lm, method, prompt, settings, name="jacobi", progress=lambda done: show("decoding", done, most)
        )
    return dependency.data(graph, model.lm, prompt, asdict(method) | {"max_tokens": settings.max_tokens})
