"""`segue run`: a file of prompts, answered as one resumable batch job."""

from __future__ import annotations

import re
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue import catalog
from segue.cli import flags, report, tasks
from segue.cli.answers import Answers
from segue.cli.settings import with_settings
from segue.cli.shards import Shards
from segue.cli.tally import Tally

if TYPE_CHECKING:
    from segue.cli.job import Planner

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Place(StrEnum):
    local = "local"
    ray = "ray"


@with_settings
def run(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="One JSON object a line; or Parquet; or a folder of both.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Answers, one JSON object a line, appended.")],
    model: flags.Model = None,
    method: flags.Method = None,
    fields: flags.Set = None,
    allow: flags.Allow = None,
    deny: flags.Deny = None,
    profile: flags.Profile = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    invariant: flags.Invariant = False,
    max_running: Annotated[int, typer.Option(help="Requests decoded at a time.")] = 64,
    token_budget: Annotated[int | None, typer.Option(help="Rows of one forward; by device if left out.")] = None,
    kv_budget: Annotated[
        str | None, typer.Option(help="Cache memory, e.g. 512M or 2G; half of what is free if left out.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Answer lines again that failed before.")
    ] = False,
    json: flags.Json = False,
    engine: Annotated[
        Place,
        typer.Option(
            help="Where answers are written: in this process, or by workers of Ray.", rich_help_panel=flags.MANY
        ),
    ] = Place.local,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that hold the model; as many as fit if left out.", rich_help_panel=flags.MANY
        ),
    ] = None,
    worker_cpus: flags.WorkerCpus = None,
    address: flags.Address = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Answer the prompts of a file. Stopped, killed or out of disk: the same command continues where it was.

    A line: {"prompt": text or token ids} or {"messages": [...]}, and if wanted "id", "method", "set" and any setting.
    An answer: {"id", "text", "tokens", "finish_reason", "stats"} or {"id", "error"}, in the order of finishing.
    Exit code 1 where a line failed.

    Of a folder, *.jsonl and *.parquet are read in the order of their names. A row of Parquet is a line, its columns are
    the keys; lines without an id have their number, counted through all files.

    With --engine ray the files are read and the answers written here; workers hold the model and need Segue, too. Each
    answers batches of at most --max-running lines. A worker that ends is replaced and its batch is done again.
    """
    budgets = {"max_running": max_running, "token_budget": token_budget, "kv_budget": size(kv_budget)}
    for name, value in budgets.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not allowed: at least 1")
    if method is not None:
        catalog.find(method)
    if engine is Place.local:
        flags.only_with("--engine ray", workers=workers, worker_cpus=worker_cpus, address=address)
    shards = Shards(source)
    if shards.holds(out):
        raise ValueError(f"{out} is the input, or part of it: name another file for the answers")
    found = tasks.survey(shards)
    if found.ignored:
        keys = ", ".join(f"{key} ({report.counted(n, 'line')})" for key, n in found.ignored.items())
        report.note(f"not settings, so ignored: {keys}")
    from segue.cli.job import Planner

    named, values = flags.from_profile(profile, method, flags.assignments(fields, allow, deny))
    planner = Planner(named, values, settings)
    planner.check()
    with Answers(out, found.keys) as answers:
        if retry_errors:
            answers.drop_failed()
        options = flags.placed(
            profile, dtype=dtype, device=device, backend=backend, quantize=quantize, invariant=invariant
        )
        place = {"source": model, **options}
        tally = Tally(answers, len(found.keys))
        stopped = 0
        if tally.before < tally.total:
            if engine is Place.local:
                stopped = _here(shards, tally, planner, budgets, place)
            else:
                from segue.cli.spread import spread

                stopped = spread(shards, tally, planner, budgets, place, workers, worker_cpus or 1, address)
    summary = tally.summary() | ({"workers": tally.workers} if engine is Place.ray else {})
    if json:
        print(report.as_json(summary))
    else:
        report.note(_line(summary))
    if stopped:
        report.note(f"interrupted: {report.counted(len(answers.done), 'answer')} of {len(found.keys):,} in {out}; "
                    "continue with the same command")  # fmt: skip
        raise typer.Exit(128 + stopped)
    raise typer.Exit(1 if answers.failed else 0)


def size(text: str | None) -> int | None:
    """Bytes from a text such as 512M or 2G; units are powers of 1024."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory: give bytes, or e.g. 512M or 2G")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _here(shards: Shards, tally: Tally, planner: Planner, budgets: dict[str, int | None], place: dict[str, Any]) -> int:
    """Answer what is left in this process; gives the signal that ended it early or 0."""
    from segue.cli.interrupt import Signals, StoppableEngine, Stopped
    from segue.cli.job import Job
    from segue.models.load import load

    lm = load(**place)
    flags.tell_quality(lm, place["source"])
    with Signals(signal.SIGINT, signal.SIGTERM) as signals, tally:
        engine = StoppableEngine(signals, **budgets)
        job = Job(lm, planner, engine, lambda task, record: tally.add(task.key, record))
        try:
            job.run(task for task in tasks.read(shards) if task.key not in tally.answers.done)
        except Stopped as stop:
            return stop.number
        finally:
            tally.forwards = engine.forwards
    return 0


def _line(summary: dict[str, Any]) -> str:
    failed = f", {summary['failed']:,} failed" if summary["failed"] else ""
    skipped = f", {summary['skipped']:,} answered before" if summary["skipped"] else ""
    return (
        f"{report.counted(summary['prompts'], 'prompt')}{failed}{skipped} · "
        f"{report.counted(summary['tokens'], 'token')} · {summary['seconds']:.2f} s · "
        f"{summary['tokens_per_second']:.1f} tokens/s · {report.counted(summary['forwards'], 'forward')}"
    )
