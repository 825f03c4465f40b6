"""`segue bench --suite load`: a server under load, from a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from segue.cli import report

SERVER = ("fastapi", "uvicorn", "prometheus_client")


def bench(
    url: str | None,
    clients: int,
    minutes: float,
    model: str | None,
    methods: str | None,
    limit: int | None,
    rounds: int,
    max_tokens: int,
    seed: int,
    output: Path | None,
    dtype: str | None,
    device: str | None,
    json: bool,
    command: str,
) -> None:
    """Load a server and hold its answers to plain decoding's; exit code 1 where something went wrong."""
    for option, value in (("--clients", clients), ("--limit", 1 if limit is None else limit)):
        if value < 1:
            raise ValueError(f"{option} {value} is not allowed: at least 1")
    if not minutes > 0:
        raise ValueError(f"--minutes {minutes:g} is not allowed: above 0")
    missing = [name for name in ("httpx", *(() if url else SERVER)) if find_spec(name) is None]
    if missing:
        raise ValueError(f"the suite load needs {' and '.join(missing)}: pip install 'segue[bench,serve]'")
    from segue import catalog
    from segue.bench.load import questions

    chosen = tuple(part.strip() for part in methods.split(",")) if methods else questions.METHODS
    wrong = next((part for part in chosen if not catalog.find(part).same_tokens), None)
    if wrong is not None:
        raise ValueError(f"--methods {wrong}: its greedy answers need not be plain decoding's, which the load checks")
    from segue.bench.load import server

    if url is not None:
        server.name_of(url)  # what is wrong with it is told before a model is loaded
    import segue
    from segue.bench.load import session
    from segue.bench.session import write_json

    source = model or "mini"
    scaled = tuple(part for part in ("plain", "auto") if part in chosen) or chosen[:1]
    plan = session.Plan(source, chosen, scaled, clients, minutes, rounds, max_tokens, limit or 48, seed, command)
    dtype = dtype or "float32"  # in which equal tokens are promised
    with ExitStack() as stack:
        show = stack.enter_context(report.progress())
        prepared = session.prepare(plan, segue.model(source, dtype=dtype, device=device), show)
        pid = None
        if url is None:
            options = ["--dtype", dtype, *(["--device", device] if device else [])]
            url, pid = stack.enter_context(server.started(source, options))
        found = session.measure(plan, prepared, url.rstrip("/"), server.name_of(url), pid, show)
    if output is not None:
        from segue.bench.load.page import page

        write_json(output / "load.json", found)
        (output / "load.html").write_text(page(found))
    if json:
        print(report.as_json(found))
    else:
        _print(session.table(found), session.verdict(found), found["memory"])
    for fault in found["faults"]:
        report.note(f"fault: {fault}")
    if found["faults"]:
        raise typer.Exit(1)


def _print(rows: list[list[str]], verdict: str, memory: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=verdict)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 170)  # a narrower one would cut the figures
    console.print(table)
    base, peak, end = memory["base"], memory["peak"], memory["end"]
    for key, name in (("kv_bytes", "cache rows set aside"), ("rss", "memory of the server's process")):
        if key in base:
            console.print(
                f"{name}: {base[key] / 1e6:.1f} MB before, {peak[key] / 1e6:.1f} peak, {end[key] / 1e6:.1f} after"
            )
