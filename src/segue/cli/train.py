"""`segue train`: make a model from a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.cli import flags, report

if TYPE_CHECKING:
    from segue.decode.speculative.store.corpus import Document
    from segue.train import Recipe

DRAFTER = "drafter"  # in place of a recipe's name


def train(
    recipe: Annotated[str | None, typer.Argument(help="What to train, or `drafter`; left out: list them.")] = None,
    kind: Annotated[str | None, typer.Argument(help="Of a drafter: the method that it drafts for.")] = None,
    model: flags.Model = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the data sets; for a drafter texts (.jsonl, plain)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Work folder, training/RECIPE if left out; gives OUT/model.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget of training time; the recipe's own if left out.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget of tokens, in place of minutes.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads; torch's own choice if left out.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in OUT.")] = True,
    teacher: Annotated[Path | None, typer.Option(help="Model folder of the teacher, for recipes that distil.")] = None,
    states: Annotated[
        Path | None,
        typer.Option(help="Folder of the model's states, for several drafters; OUT/states if left out."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Drafter or language model to go on from, in place of a fresh one.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A number of the recipe of a drafter or a tuning."),
    ] = None,
    json: flags.Json = False,
) -> None:
    """Train a model from a recipe, or a drafter beside a model. Stopped, the same command goes on where it was.

    segue train drafter mlp_speculator -m MODEL --data texts.jsonl
    """
    import segue.train
    from segue.train.recipes import find_recipe

    if recipe is None:
        _list(json)
        return
    say = report.note if json else print
    budget: dict[str, Any] = {"minutes": minutes, "tokens": tokens, "threads": threads, "resume": resume}
    if recipe == DRAFTER:
        if teacher is not None:
            raise ValueError("a drafter learns from its model: drop --teacher")
        places = {"states": states, "start": start}
        summary, folder = _drafter(kind, model, data or [], out, flags.assignments(fields), budget | places, say)
    elif recipe in segue.train.TUNED:
        for name, given in {"KIND": kind, "--states": states, "--start": start, "--teacher": teacher}.items():
            if given:
                raise ValueError(f"{name} is not for {recipe}, which tunes a whole model (-m MODEL --data TEXTS)")
        summary, folder = _tuned(recipe, model, data or [], out, flags.assignments(fields), budget, say)
    else:
        find_recipe(recipe)
        for name, value in (
            ("KIND", kind),
            ("--model", model),
            ("--states", states),
            ("--set", fields),
        ):
            if value:
                raise ValueError(f"{name} is for drafters (segue train drafter KIND -m MODEL), not for {recipe}")
        if not data:
            raise ValueError(f"training {recipe} needs --data, the folder of the data sets")
        folder = out or Path("training") / recipe
        if len(data) > 1 or not data[0].is_dir():
            raise ValueError(f"--data {' '.join(map(str, data))} is not a folder")
        summary = segue.train.train(recipe, data=data[0], out=folder, teacher=teacher, start=start, say=say, **budget)
    print(report.as_json(summary) if json else f"the model is in {folder / 'model'}")


def _drafter(
    kind: str | None,
    model: str | None,
    data: list[Path],
    out: Path | None,
    values: dict[str, str],
    options: dict[str, Any],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Path]:
    """Train a drafter; the summary and the work folder."""
    import segue
    from segue.train import train_drafter
    from segue.train.recipes import DRAFTERS, drafter_recipe

    if kind is None:
        raise ValueError(f"name the kind of drafter: {', '.join(DRAFTERS)}")
    recipe = drafter_recipe(kind, values)
    documents = _documents(data, "training a drafter")
    folder = out or Path("training") / kind
    lm = segue.model(model, lean=False).lm  # exchanged parts have no gradients
    texts = [document.ids(lm) for document in documents]
    command = _command(f"segue train drafter {kind}", model, data, values)
    with report.progress() as progress:
        summary = train_drafter(recipe, lm, texts, out=folder, command=command, say=say, progress=progress, **options)
    return summary, folder


def _tuned(
    kind: str,
    model: str | None,
    data: list[Path],
    out: Path | None,
    values: dict[str, str],
    options: dict[str, Any],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Path]:
    """Tune a model for a method; the summary and the work folder."""
    import segue
    from segue.train import tune_model
    from segue.train.recipes import tuned_recipe

    recipe = tuned_recipe(kind, values)
    documents = _documents(data, "this training")
    lm = segue.model(model).lm
    texts = [document.ids(lm) for document in documents]
    folder = out or Path("training") / kind
    command = _command(f"segue train {kind}", model, data, values)
    return tune_model(recipe, model, texts, out=folder, command=command, say=say, **options), folder


def _documents(data: list[Path], what: str) -> list[Document]:
    """The texts that `what` learns from; looked at before a model is loaded."""
    from segue.decode.speculative.store.corpus import read_corpus

    if not data:
        raise ValueError(f"{what} needs --data: texts (.jsonl with text or prompt on every line, or plain)")
    return read_corpus(data, prompts=True, purpose="learn from").documents


def _command(begin: str, model: str | None, data: list[Path], values: dict[str, str]) -> str:
    """What a reader types for the same training."""
    parts = [f"-m {shlex.quote(model)}"] if model else []
    parts += [f"--data {shlex.quote(str(path))}" for path in data]
    return " ".join([begin, *parts, *(f"--set {name}={value}" for name, value in values.items())])


def _list(json: bool) -> None:
    from segue.train import DRAFTERS, RECIPES, TUNED

    if json:
        print(report.as_json([_facts(r) for r in (*RECIPES.values(), *TUNED.values(), *DRAFTERS.values())]))
        return
    for r in RECIPES.values():
        facts = _facts(r)
        shown = f"{facts['minutes']:g} minutes, {facts['layers']} layers of width {facts['width']}"
        print(f"{r.name}: {shown}" + (", needs --teacher" if r.taught else ""))
    for t in TUNED.values():
        print(f"{t.name}: {t.minutes:g} minutes, of a whole model (-m)")
    for d in DRAFTERS.values():
        print(f"{d.name}: {d.minutes:g} minutes, beside a model (-m)")


def _facts(recipe: Recipe) -> dict[str, object]:
    return {"name": recipe.name, "minutes": recipe.minutes, **recipe.size(), "distils": recipe.taught}
