"""Training of the embedded models from recipes: `train` runs one, `RECIPES` names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.train.recipes import (
    DRAFTERS,
    RECIPES,
    TUNED,
    Drafter,
    LanguageModel,
    Recipe,
    Translation,
    Tuned,
    find_recipe,
)
from segue.train.record import Record

if TYPE_CHECKING:
    from segue.models.lm import LM
    from segue.train.task import Task

__all__ = [
    "DRAFTERS",
    "RECIPES",
    "TUNED",
    "Drafter",
    "LanguageModel",
    "Recipe",
    "Translation",
    "Tuned",
    "train",
    "train_drafter",
    "tune_model",
]


def train(
    recipe: str | Recipe,
    *,
    data: Path,
    out: Path,
    minutes: float | None = None,
    tokens: int | None = None,
    resume: bool = True,
    threads: int | None = None,
    teacher: Path | None = None,
    start: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a recipe in the work folder `out` and return its summary; the model is in `out`/model.

    The budget is `minutes` of training time or `tokens`, the recipe's own minutes where neither is given.
    Run again with the same folder, training continues from the last checkpoint. Recipes that distil need
    the model folder of their `teacher`; a language model may go on from the folder `start` of an earlier one, with a
    schedule of its own. Lines for the reader go to `say`.
    """
    chosen = find_recipe(recipe) if isinstance(recipe, str) else recipe
    if chosen.taught != (teacher is not None):
        wrong = "needs a teacher: name the folder of a trained model" if chosen.taught else "takes no teacher"
        raise ValueError(f"recipe {chosen.name!r} {wrong}")
    if start is not None:
        if not isinstance(chosen, LanguageModel):
            raise ValueError(f"recipe {chosen.name!r} cannot go on from a model (start); only language models can")
        Record.of(start, chosen)  # what cannot go on leaves no work folder

    def make() -> Task:
        if isinstance(chosen, Translation):
            from segue.train.translation import TranslationTask

            return TranslationTask(chosen, data, out)
        from segue.train.language import LanguageTask

        assert isinstance(chosen, LanguageModel)
        return LanguageTask(chosen, data, out, teacher, start)

    command = f"segue train {chosen.name} --data DATA" + (" --teacher TEACHER" if chosen.taught else "")
    command += " --start EARLIER" if start else ""
    return _run(chosen, make, command, out, minutes, tokens, resume, threads, say)


def train_drafter(
    recipe: Drafter,
    lm: LM,
    texts: list[list[int]],
    *,
    out: Path,
    command: str,
    minutes: float | None = None,
    tokens: int | None = None,
    resume: bool = True,
    threads: int | None = None,
    states: Path | None = None,
    start: Path | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Train a drafter for `lm` (loaded with lean=False) on texts of token ids, in the work folder `out`; the summary.
    The drafter is in `out`/model. The states that it learns from are kept in the folder `states`, which drafters that
    read the same may share; `start` is the folder of a drafter to go on from; the rest is as in `train`."""

    def make() -> Task:
        from segue.train.drafter import DrafterTask

        return DrafterTask(recipe, lm, texts, out, states=states, start=start, progress=progress)

    return _run(recipe, make, command, out, minutes, tokens, resume, threads, say)


def tune_model(
    recipe: Tuned,
    source: str | None,
    texts: list[list[int]],
    *,
    out: Path,
    command: str,
    minutes: float | None = None,
    tokens: int | None = None,
    resume: bool = True,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Tune the model at `source` on texts of token ids for a method that needs a model of its own, in the work folder
    `out`; the summary. The tuned model is in `out`/model; the rest is as in `train`."""

    def make() -> Task:
        from segue.train.tuned import TunedTask

        return TunedTask(recipe, source, texts)

    return _run(recipe, make, command, out, minutes, tokens, resume, threads, say)


def _run(
    recipe: Recipe,
    make: Callable[[], Task],
    command: str,
    out: Path,
    minutes: float | None,
    tokens: int | None,
    resume: bool,
    threads: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    if minutes is not None and tokens is not None:
        raise ValueError(f"a budget is minutes ({minutes:g}) or tokens ({tokens}), not both; drop one")
    for name, value in (("minutes", minutes), ("tokens", tokens), ("threads", threads)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    # Threads that spin while they wait lose most of their speed on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from segue.train.loop import Budget, run_recipe

    if minutes is None and tokens is None:
        minutes = recipe.minutes
    if threads is not None:
        torch.set_num_threads(threads)
    budget = Budget(minutes, tokens)
    return run_recipe(recipe, make, out=out, budget=budget, command=command, resume=resume, say=say)
