"""`segue train`: make a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.cli import flags, report

if TYPE_CHECKING:
    from segue.train import Recipe


def train(
    recipe: Annotated[str | None, typer.Argument(help="What to train; left out: list the recipes.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Work folder, training/RECIPE if left out; gives OUT/model.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget of training time; the recipe's own if left out.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget of tokens, in place of minutes.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads; torch's own choice if left out.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in OUT.")] = True,
    teacher: Annotated[Path | None, typer.Option(help="Model folder of the teacher, for recipes that distil.")] = None,
    json: flags.Json = False,
) -> None:
    """Train a recipe. Stopped, the same command continues from the last checkpoint."""
    import segue.train
    from segue.train.recipes import find_recipe

    if recipe is None:
        _list(json)
        return
    find_recipe(recipe)
    if data is None:
        raise ValueError(f"training {recipe} needs --data, the folder of the data sets")
    if out is None:
        out = Path("training") / recipe
    if not data.is_dir():
        raise ValueError(f"--data {data} is not a folder")
    say = report.note if json else print
    summary = segue.train.train(
        recipe, data=data, out=out, minutes=minutes, tokens=tokens, threads=threads, resume=resume,
        teacher=teacher, say=say,
    )  # fmt: skip
    print(report.as_json(summary) if json else f"the model is in {out / 'model'}")


def _list(json: bool) -> None:
    from segue.train import RECIPES

    if json:
        print(report.as_json([_facts(r) for r in RECIPES.values()]))
        return
    for r in RECIPES.values():
        facts = _facts(r)
        shown = f"{facts['minutes']:g} minutes, {facts['layers']} layers of width {facts['width']}"
        print(f"{r.name}: {shown}" + (", needs --teacher" if r.taught else ""))


def _facts(recipe: Recipe) -> dict[str, object]:
    return {"name": recipe.name, "minutes": recipe.minutes, **recipe.size(), "distils": recipe.taught}
