"""The list of methods, and the bench reports, as pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from segue import catalog
from segue.catalog import Entry
from segue.docs import measured

HEADS = ("method", "family", "paper", "exactness", "the paper's claim", "our result", "needs")
SEALED = {  # of a report: it is shown, and runs nothing
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
NO_REPORT = (
    "No report was given. Make one and show it here:",
    "segue bench --suite spec --methods plain,auto,prompt_lookup -o reports",
    "segue ui --report reports/spec.html",
)


def methods(words: str = "") -> str:
    """A table of the methods in which every one of these words occurs; all without any."""
    wanted = words.lower().split()
    rows = []
    for entry in catalog.entries().values():
        cells = _cells(entry)
        if all(word in " ".join((*cells, entry.summary)).lower() for word in wanted):
            name, *others = (escape(cell) for cell in cells)
            inner = "".join(f"<td>{cell}</td>" for cell in others)
            rows.append(f'<tr><th scope="row">{name}<small>{escape(entry.summary)}</small></th>{inner}</tr>')
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in HEADS)
    count = f"{len(rows)} of {len(catalog.entries())} methods"
    table = f'<table class="seg-methods"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<p class="seg-hint">{count}</p><div class="seg-roll">{table}</div>'


def _cells(entry: Entry) -> tuple[str, ...]:
    card = entry.card
    where = ", ".join(str(part) for part in (card.paper.id, card.paper.year) if part)
    paper = f"{card.paper.title} ({where})" if where else card.paper.title
    exact = ", ".join(type(promise).__name__ for promise in card.exact)
    return (
        entry.name,
        entry.family,
        paper,
        exact,
        str(card.claim or "none"),
        measured(entry),
        ", ".join(card.needs),
    )


def fields(name: str | None) -> str:
    """The fields of a method, to write after; nothing where there is no such method."""
    if name not in catalog.entries():
        return ""
    found = catalog.find(name).fields
    if not found:
        return '<p class="seg-hint">It has no fields.</p>'
    items = "".join(
        f"<li><code>{escape(field.name)}={escape(_default(field.default))}</code> {escape(field.comment)}</li>"
        for field in found
    )
    return f'<details class="seg-fields"><summary>{len(found)} fields</summary><ul>{items}</ul></details>'


def _default(value: object) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_reports(paths: Sequence[Path]) -> None:
    """ValueError where one cannot be shown."""
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"no report at {path}: make one with segue bench -o FOLDER, which writes FOLDER/SUITE.html"
            )
        if "<html" not in path.read_bytes()[:4096].decode("utf-8", "replace").lower():
            raise ValueError(f"{path} is no HTML page: give the page that segue bench wrote")


def reports(paths: Sequence[Path]) -> str:
    """Frames that show the reports, which may run no script; without any, how to make one."""
    if not paths:
        words, *commands = NO_REPORT
        lines = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
        return f'<div class="seg-none"><p>{escape(words)}</p>{lines}</div>'
    return "".join(
        f'<details class="seg-report"{" open" if number == 0 else ""}><summary>{escape(str(path))}</summary>'
        f'<iframe sandbox src="/reports/{number}" title="{escape(path.name)}" loading="lazy"></iframe></details>'
        for number, path in enumerate(paths)
    )
