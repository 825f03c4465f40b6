"""`segue run`: a file of prompts, answered as one resumable batch job."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from segue import catalog
from segue.cli import flags, report, tasks
from segue.cli.answers import Answers
from segue.cli.settings import with_settings

if TYPE_CHECKING:
    from segue.cli.job import Planner

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@with_settings
def run(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="One JSON object a line.")],
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
    *,
    settings: dict[str, Any],
) -> None:
    """Answer the prompts of a file. Stopped, killed or out of disk: the same command continues where it was.

    A line: {"prompt": text or token ids} or {"messages": [...]}, and if wanted "id", "method", "set" and any setting.
    An answer: {"id", "text", "tokens", "finish_reason", "stats"} or {"id", "error"}, in the order of finishing.
    Exit code 1 where a line failed.
    """
    budgets = {"max_running": max_running, "token_budget": token_budget, "kv_budget": size(kv_budget)}
    for name, value in budgets.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not allowed: at least 1")
    if method is not None:
        catalog.find(method)
    with tasks.open_input(source) as file:
        if out.exists() and out.samefile(source):
            raise ValueError(f"{out} is the input: name another file for the answers")
        found = tasks.survey(file, str(source))
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
            summary, stopped = _work(file, answers, planner, len(found.keys), budgets, place)
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


def _work(
    file: BinaryIO,
    answers: Answers,
    planner: Planner,
    total: int,
    budgets: dict[str, int | None],
    place: dict[str, Any],
) -> tuple[dict[str, Any], int]:
    """Answer what is left; gives the summary, and the signal that ended it early or 0."""
    from segue.cli.interrupt import Signals, StoppableEngine, Stopped
    from segue.cli.job import Job
    from segue.models.load import load

    before = len(answers.done)
    tokens = forwards = stopped = 0
    seconds = 0.0
    if before < total:
        lm = load(**place)
        flags.tell_quality(lm, place["source"])
        with Signals(signal.SIGINT, signal.SIGTERM) as signals:
            job = Job(lm, planner, answers, total, StoppableEngine(signals, **budgets))
            began = time.perf_counter()
            try:
                job.run(file)
            except Stopped as stop:
                stopped = stop.number
            answers.sync()
            seconds = time.perf_counter() - began
        tokens, forwards = job.tokens, job.engine.forwards
    summary = {
        "prompts": total,
        "answered": len(answers.done) - before,
        "skipped": before,
        "failed": len(answers.failed),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
        "forwards": forwards,
    }
    return summary, stopped


def _line(summary: dict[str, Any]) -> str:
    failed = f", {summary['failed']:,} failed" if summary["failed"] else ""
    skipped = f", {summary['skipped']:,} answered before" if summary["skipped"] else ""
    return (
        f"{report.counted(summary['prompts'], 'prompt')}{failed}{skipped} · "
        f"{report.counted(summary['tokens'], 'token')} · {summary['seconds']:.2f} s · "
        f"{summary['tokens_per_second']:.1f} tokens/s · {report.counted(summary['forwards'], 'forward')}"
    )
