"""`segue methods`: what there is, what the papers claim, what we measured."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from segue import catalog
from segue.card import Claim
from segue.cli import flags, report
from segue.docs import measured

WIDTH = 160  # columns where the output is no terminal


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.")] = None,
    json: flags.Json = False,
) -> None:
    """List the decoding methods, or show one: algorithm, card and fields."""
    found = list(catalog.entries().values()) if name is None else [catalog.find(name)]
    if json:
        data = [entry.as_dict() for entry in found]
        print(report.as_json(data if name is None else data[0]))
    elif name is None:
        _table(found)
    else:
        _page(found[0])


def _table(found: list[catalog.Entry]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "family", "paper", "exactness", "claim", "measured"):
        table.add_column(column, overflow="fold", no_wrap=column == "method")
    for entry in found:
        table.add_row(
            entry.name, entry.family, _paper(entry), _exactness(entry), _claim(entry.card.claim), measured(entry)
        )
    _print(table)


def _page(entry: catalog.Entry) -> None:
    from rich.table import Table

    card = entry.card
    rows = {
        "paper": _paper(entry),
        "family": entry.family,
        "exactness": _exactness(entry),
        "claim": str(card.claim or "none"),
        "measured": measured(entry),
        "trains": card.trains,
        "needs": ", ".join(card.needs),
        "departs": card.departs or "nowhere",
    }
    summary = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows.items():
        summary.add_row(key, value)
    _print(f"{entry.name}: {entry.summary}\n", entry.doc, "", summary, "")
    if not entry.fields:
        _print("It has no fields.")
        return
    fields = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("field", "type", "default", "meaning"):
        fields.add_column(column, overflow="fold")
    for field in entry.fields:
        fields.add_row(field.name, field.type, str(field.default), field.comment)
    _print(fields)


def _print(*parts: Any) -> None:
    from rich.console import Console

    # Cards are text, not markup: brackets stay as they are.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    # Rich leaves the program by itself when a pipe breaks; a plain write leaves that to `main`.
    with console.capture() as text:
        for part in parts:
            console.print(part)
    print(text.get(), end="")


def _paper(entry: catalog.Entry) -> str:
    paper = entry.card.paper
    where = ", ".join(str(part) for part in (paper.id, paper.year) if part)
    return f"{paper.title} ({where})" if where else paper.title


def _exactness(entry: catalog.Entry) -> str:
    promises = []
    for promise in entry.card.as_dict()["exact"]:  # type: ignore[attr-defined]
        # Where a law begins is a matter of the law, not of what is promised.
        details = ", ".join(f"{key}={value}" for key, value in promise.items() if key not in ("class", "begin"))
        promises.append(promise["class"] + (f"({details})" if details else ""))
    return ", ".join(promises)


def _claim(claim: Claim | None) -> str:
    return "none" if claim is None else claim.figure
