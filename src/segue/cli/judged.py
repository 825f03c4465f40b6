"""`segue bench` on a suite whose answers are judged: what they are worth, not only how fast they come."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from segue.cli import report


def bench(
    suite: str,
    model: str | None,
    methods: str | None,
    draft: str | None,
    limit: int | None,
    settings: Mapping[str, Any],
    output: Path | None,
    write: bool,
    options: Mapping[str, Any],
    json: bool,
    command: str,
) -> None:
    """Compare methods by quality; exit code 1 where an answer under a constraint was invalid."""
    from segue.bench import judged_session as session
    from segue.bench.cases import cases as find
    from segue.catalog import RESULTS
    from segue.data import Settings

    cases = find(suite, limit)
    sort = session.sort_of(cases)
    plan = session.Plan(cases, sort, methods, model or sort.source, draft, Settings(**settings), command)
    plan.entrants()  # a name that is wrong is told before a model is loaded
    import segue

    lm = segue.model(plan.source, **options)
    journal = output / f"{cases.name}.journal.jsonl" if output is not None else None
    with report.progress() as show:
        records, setting = session.measure(plan, lm, journal=journal, progress=partial(show, "answering"))
    for folder in filter(None, (output, RESULTS / "bench" if write else None)):
        session.write(folder, sort, records, setting)
    if journal is not None:
        journal.unlink(missing_ok=True)  # the next one starts anew
    if json:
        print(report.as_json({"setting": setting, "records": records}))
    else:
        _print(session.table(sort, records), f"{setting['suite']}: {setting['prompts']} prompts")
    for remark in session.remarks(records, setting):
        report.note(remark)
    faults = session.wrong(records)
    for fault in faults:
        report.note(f"invalid: {fault}")
    if faults:
        raise typer.Exit(1)


def _print(rows: list[list[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    console.width = 400  # a narrower one would cut the figures; the table takes what it needs
    console.print(table)
