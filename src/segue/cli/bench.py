"""`segue bench`: methods and peers side by side on a suite or on your own prompts."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from segue.cli import flags, report
from segue.cli.judged import bench as compare
from segue.cli.load import bench as put_under_load

LOAD = "Load"


def bench(
    suite: Annotated[
        str,
        typer.Option(
            help="Of speed: spec, code, long, adversarial, or a JSONL file of prompts. Of quality: translation, "
            "constrained, or a JSONL file with a reference or a constraint on every line. load: a server with many "
            "clients."
        ),
    ] = "spec",
    model: flags.Model = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, with fields as name:field=value, lists of names as auto:deny=rest+aded; if left out every "
            "lossless one that needs no store, or on a suite of quality every one that it is about."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="On suites of speed: transformers (always), llama.cpp, and in a Python of their own "
            "onnxruntime-genai=PYTHON and openvino-genai=PYTHON, or some of their kinds as "
            "openvino-genai:fp32:int8=PYTHON."
        ),
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model for the methods and the peer that take one.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Times that everyone answers everything (3; on a suite of quality once), or that one client and many "
            "take turns (5)."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most per answer.")] = 64,
    limit: Annotated[int | None, typer.Option(help="So many prompts, evenly spaced.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the suite's own if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for SUITE.json, SUITE.html and the journal.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Keep the results under results/ (a checkout).")] = False,
    url: Annotated[
        str | None,
        typer.Option(help="A server to load that runs already, with the model of -m.", rich_help_panel=LOAD),
    ] = None,
    clients: Annotated[int, typer.Option(help="Clients of the mixed load.", rich_help_panel=LOAD)] = 32,
    minutes: Annotated[float, typer.Option(help="Of the mixed load.", rich_help_panel=LOAD)] = 5.0,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    json: flags.Json = False,
) -> None:
    """Measure methods against transformers and each other, alternately in one process.

    On a suite of quality their answers are judged beside plain decoding's; exit code 1 says that one was invalid under
    its constraint.

    A table on stdout; with -o also JSON and one self-contained HTML report, and a run that was killed goes on where it
    was when started again.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"--rounds {rounds} is not allowed: at least 1")
    from segue.bench.cases import judged

    if url is not None and suite != "load":
        raise ValueError(f"--url is for --suite load, not for {suite}")
    paged = output is not None or (write and judged(suite))
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None] if paged else []
    if missing:
        raise ValueError(f"the report needs {' and '.join(missing)}: pip install 'segue[bench]'")
    command = "segue " + shlex.join(sys.argv[1:])
    if suite == "load":
        taken = {"--peers": peers, "--draft": draft, "--temperature": temperature, "--write": write or None}
        other = next((option for option, value in taken.items() if value is not None), None)
        if other is not None:
            raise ValueError(f"{other} has no meaning for --suite load: leave it out")
        asked = (model, methods, limit, rounds or 5, max_tokens, seed, output, dtype, device, json, command)
        put_under_load(url, clients, minutes, *asked)
        return
    if judged(suite):
        if rounds is not None or peers is not None:
            raise ValueError(f"--rounds and --peers are for suites of speed: {suite} is judged by its answers, once")
        settings = {"max_tokens": max_tokens, "temperature": temperature or 0.0, "seed": seed}
        options = {"dtype": dtype, "device": device}
        compare(suite, model, methods, draft, limit, settings, output, write, options, json, command)
        return
    from segue.bench import session
    from segue.bench.suites import suite as find_suite
    from segue.data import Settings

    chosen = find_suite(suite, limit)
    source = model or "mini"
    heat = chosen.temperature if temperature is None else temperature
    plan = session.Plan(
        chosen,
        session.parse_methods(methods, draft, source),
        source,
        draft or ("mini-draft" if source == "mini" else None),
        # Samples end where chance has it: all go to full length, or lengths would decide the comparison.
        Settings(max_tokens=max_tokens, temperature=heat, seed=seed, ignore_eos=heat > 0),
        rounds or 3,
        session.check_peers(peers or "transformers"),
        command,
    )
    import segue

    lm = segue.model(source, dtype=dtype, device=device)
    cost = lm.lm.cost
    journal = output / f"{chosen.name}.journal.jsonl" if output is not None else None
    with report.progress() as show:
        records, setting = session.measure(plan, lm, journal=journal, progress=partial(show, "measuring"))
    rows = session.table(records)
    if output is not None:
        from segue.bench.report import page

        session.write_json(
            output / f"{chosen.name}.json",
            {"setting": setting, "cost": {"rows": cost.rows, "seconds": cost.seconds}, "records": records},
        )
        html = page(records, setting, (list(cost.rows), list(cost.seconds)), rows)
        (output / f"{chosen.name}.html").write_text(html)
        if journal is not None:
            journal.unlink(missing_ok=True)  # the next one starts anew
    if write:
        session.write_results(records, setting)
    if json:
        print(report.as_json({"setting": setting, "records": records}))
        return
    _print(rows, setting)


def _print(rows: list[list[str]], setting: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=f"{setting['suite']} {setting['says']}".strip())
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 170)  # a narrower one would cut the figures
    console.print(table)
    if setting["prompts_cut"]:
        console.print(f"{setting['prompts_cut']} prompts were longer than the context allows: their ends were used")
