"""`segue draft-study`: which draft model, and how many tokens a round; with or without the target at hand."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.cli import flags, report

if TYPE_CHECKING:
    from segue.api import Model
    from segue.bench.draftstudy import Study
    from segue.bench.drafttrace import Trace
    from segue.models.lm import LM

app = typer.Typer()


@app.callback(invoke_without_command=True)
def study(
    context: typer.Context,
    model: flags.Model = None,
    draft: Annotated[list[str] | None, typer.Option(help="A draft model to judge; repeatable.")] = None,
    suite: Annotated[str, typer.Option(help="A suite, or a JSONL file of prompts.")] = "spec",
    limit: Annotated[int | None, typer.Option(help="So many prompts, evenly spaced.")] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most per answer.")] = 64,
    max_gamma: Annotated[int, typer.Option(help="Drafted tokens a round, at most.")] = 8,
    measure: Annotated[
        bool, typer.Option("--measure", help="Set the prediction against draft_model taking turns with plain decoding.")
    ] = False,
    gamma: Annotated[
        list[int] | None,
        typer.Option(help="With --measure: a gamma to measure; repeatable. Each draft's best if left out."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="With --measure: times that everyone answers everything.")] = 3,
    record: Annotated[
        Path | None, typer.Option(help="Keep the target's answers in this JSONL file; goes on where it was.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Judge on such a file; the target is not loaded.")] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Costs of target and draft taking turns, not each alone: their caches are one."
        ),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the costs of a forward anew.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the figures to this JSON file.")] = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    json: flags.Json = False,
) -> None:
    """Judge draft models for a target: latency, acceptance by position, throughput by gamma, break-even acceptance.

    Predicted from measured costs and from the draft's agreement with the target's own greedy text.
    """
    if context.invoked_subcommand is not None:
        _check_subcommand(context)
        return
    names = draft or []
    _check(names, model, record, trace, measure, together, gamma, rounds, max_gamma, max_tokens, output)
    from segue.bench.suites import suite as find_suite

    chosen = None if trace is not None else find_suite(suite, limit)
    from segue.bench import draftstudy, drafttrace
    from segue.bench.session import write_json

    lm: Model | None = None
    with report.progress() as show:
        if trace is not None:
            known = drafttrace.read(trace)
        else:
            import segue

            assert chosen is not None
            lm = segue.model(model, dtype=dtype, device=device)
            _fresh(lm.lm, fresh)
            room = lm.lm.context_length - max_tokens - 1
            ids = [lm.encode(prompt)[-room:] for prompt in chosen.prompts]
            known = drafttrace.record(lm, ids, max_tokens, path=record, progress=partial(show, "the target answers"))
        loaded = {name: _load(name, known, lm, dtype, device) for name in names}
        studies = []
        for name, small in loaded.items():
            _fresh(small, fresh)
            costs = None
            if together and lm is not None:
                costs = _together(lm.lm, small, known, max_gamma, partial(show, f"{name} takes turns"))
            studies.append(
                draftstudy.study(
                    known, small, max_gamma, name=name, costs=costs, progress=partial(show, f"{name} reads")
                )
            )
        compared = []
        if measure and lm is not None:
            wanted = {s.draft: gamma or [s.best.gamma or 1] for s in studies}
            found = draftstudy.measure(lm, loaded, wanted, known, rounds, progress=partial(show, "taking turns"))
            compared = draftstudy.compare(studies, found)
    data = {
        "target": {**known.head(), "prompts_answered": len(known.answers)},
        "setting": draftstudy.setting(known, "segue " + shlex.join(sys.argv[1:])) | {"costs_together": together},
        "drafts": [s.as_dict() for s in studies],
        "measured": compared,
    }
    if output is not None:
        write_json(output, data)
    if len(known.answers) < known.prompts:
        report.note(f"note: {trace} holds {len(known.answers)} of {known.prompts} answers: its recording was not ended")
    if json:
        print(report.as_json(data))
    elif studies:
        _print(known, studies, compared)
    if record is not None:
        report.note(
            f"{record}: {report.counted(len(known.answers), 'answer')} of {known.model}; --trace {record} uses it"
        )


@app.command()
def build(
    folder: Annotated[Path, typer.Option("-o", "--output", help="The folder to write; it must not be there yet.")],
    model: flags.Model = None,
    keep: Annotated[str | None, typer.Option(help="Layers to keep, e.g. 0,5.")] = None,
    layers: Annotated[
        int | None, typer.Option(help="Or how many: evenly spaced, the first and the last among them.")
    ] = None,
    json: flags.Json = False,
) -> None:
    """Write a draft model: chosen layers of a teacher at its full width, a checkpoint like any other."""
    if (keep is None) == (layers is None):
        raise ValueError("give the layers to keep with --keep 0,5, or their number with --layers 2")
    chosen: Any = layers
    if keep is not None:
        try:
            chosen = [int(part) for part in keep.split(",")]
        except ValueError:
            raise ValueError(f"--keep {keep!r} is not a list of layer numbers, e.g. 0,5") from None
    from segue.models.prune import keep_layers

    facts = keep_layers(model, chosen, folder)
    if json:
        print(report.as_json(facts))
        return
    kept = ", ".join(map(str, facts["kept"]))
    print(
        f"{folder}: layers {kept} of the {facts['teacher_layers']} of {facts['teacher']}, "
        f"{facts['parameters'] / 1e6:,.2f}M parameters"
    )


def _check_subcommand(context: typer.Context) -> None:
    """An option that stands before the name of a subcommand would have no effect."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} is of the study and not of {context.invoked_subcommand}: write it behind, or drop it"
            )


def _check(
    drafts: list[str],
    model: str | None,
    record: Path | None,
    trace: Path | None,
    measure: bool,
    together: bool,
    gamma: list[int] | None,
    rounds: int,
    max_gamma: int,
    max_tokens: int,
    output: Path | None,
) -> None:
    """What is wrong with the options is told before anything is loaded."""
    if not drafts and record is None:
        raise ValueError("nothing to judge: name a draft model with --draft, or record the target with --record FILE")
    twice = next((name for name in drafts if drafts.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--draft {twice} is named twice")
    if trace is not None:
        other = [("-m", model), ("--record", record), ("--measure", measure or None), ("--together", together or None)]
        clash = next((name for name, value in other if value is not None), None)
        if clash is not None:
            raise ValueError(f"--trace replaces the target, and {clash} needs it: give one of them")
    if gamma and not measure:
        raise ValueError("--gamma names what --measure measures: give both")
    numbers = (("--max-gamma", max_gamma), ("--rounds", rounds), ("--max-tokens", max_tokens))
    for name, value in (*numbers, *(("--gamma", g) for g in gamma or ())):
        if value < 1:
            raise ValueError(f"{name} {value} is not allowed: at least 1")
    if gamma and max(gamma) > max_gamma:
        raise ValueError(f"--gamma {max(gamma)} is not allowed: at most --max-gamma, which is {max_gamma}")
    for flag, path in (("-o", output), ("--record", record)):
        if path is not None:
            flags.check_output(path, option=flag)


def _load(name: str, trace: Trace, lm: Model | None, dtype: str | None, device: str | None) -> LM:
    """A draft model beside its target, or alone; ValueError where the vocabularies differ."""
    if lm is not None:
        from segue.models.companion import companion

        return companion(lm.lm, name)
    from segue.models.load import load

    draft = load(name, **({"dtype": dtype, "device": device} if not name.endswith(".gguf") else {}))
    trace.check_draft(draft)
    return draft


def _fresh(lm: LM, wanted: bool) -> None:
    if wanted:
        from segue.models.cost import cost_of

        vars(lm)["cost"] = cost_of(lm, refresh=True)


def _together(target: LM, draft: LM, trace: Trace, most: int, progress: Any) -> Any:
    """Behind the answer of middling length."""
    from segue.bench.draftcosts import together

    texts = sorted(([*a.prompt, *a.tokens] for a in trace.answers), key=len)
    return together(target, draft, texts[len(texts) // 2], most, progress=progress)


def _print(trace: Trace, studies: list[Study], compared: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    plain = trace.cost.step(1)
    title = f"drafts for {trace.model} ({trace.precision}, a step {1000 * plain:.2f} ms, {1 / plain:.0f} tokens/s)"
    heads = ("draft", "layers", "width", "parameters", "step ms", "of the target's", "accepted by position")
    summary = Table(*heads, "best gamma", "over plain", "break-even", title=title)
    for s in studies:
        by_position = " ".join(f"{share:.2f}" for share in s.acceptance[:5])
        size = "-" if s.parameters is None else f"{s.parameters / 1e6:,.2f}M"
        depth = ["-" if n is None else str(n) for n in (s.layers, s.width)]
        figures = [f"{1000 * s.latency:.2f}", f"{s.relative_latency:.2f}", by_position]
        even = "never" if s.break_even is None else f"{s.break_even:.2f}"
        summary.add_row(s.draft, *depth, size, *figures, str(s.best.gamma), f"{s.best.ratio:.2f}", even)
    curve = Table("gamma", *(s.draft for s in studies), title="tokens/s (accepted)")
    for points in zip(*(s.points for s in studies), strict=True):
        curve.add_row(str(points[0].gamma), *(f"{p.throughput:.0f} ({p.accepted:.2f})" for p in points))
    tables = [summary, curve]
    if compared:
        columns = ("draft", "gamma", "formula", "whole answers", "measured", "off by", "same tokens")
        tables.append(Table(*columns, title="over plain decoding: predicted and measured"))
        for m in compared:
            measured = "{:.2f} [{:.2f}, {:.2f}]".format(m["ratio"], *m["interval"])
            predicted = f"{m['predicted']:.2f}", f"{m['predicted_answers']:.2f}"
            equal = f"{m['equal']} of {len(trace.answers)}"
            tables[-1].add_row(m["draft"], str(m["gamma"]), *predicted, measured, f"{m['error']:+.0%}", equal)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 150)  # a narrower one would cut the figures
    # Rich leaves the program by itself when a pipe breaks; a plain write leaves that to `main`.
    with console.capture() as text:
        for table in tables:
            console.print(table)
    print(text.get(), end="")
