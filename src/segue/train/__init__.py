"""Training of the embedded models from recipes: `train` runs one, `RECIPES` names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segue.train.recipes import RECIPES, LanguageModel, Recipe, Translation, find_recipe

__all__ = ["RECIPES", "LanguageModel", "Recipe", "Translation", "train"]


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
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a recipe in the work folder `out` and return its summary; the model is in `out`/model.

    The budget is `minutes` of training time or `tokens`, the recipe's own minutes where neither is given.
    Run again with the same folder, training continues from the last checkpoint. Recipes that distil need
    the model folder of their `teacher`. Lines for the reader go to `say`.
    """
    chosen = find_recipe(recipe) if isinstance(recipe, str) else recipe
    if minutes is not None and tokens is not None:
        raise ValueError(f"a budget is minutes ({minutes:g}) or tokens ({tokens}), not both; drop one")
    for name, value in (("minutes", minutes), ("tokens", tokens), ("threads", threads)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    if chosen.taught != (teacher is not None):
        wrong = "needs a teacher: name the folder of a trained model" if chosen.taught else "takes no teacher"
        raise ValueError(f"recipe {chosen.name!r} {wrong}")

    # Threads that spin while they wait lose most of their speed on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from segue.train.loop import Budget, run_recipe

    if minutes is None and tokens is None:
        minutes = chosen.minutes
    if threads is not None:
        torch.set_num_threads(threads)
    return run_recipe(
        chosen, data=data, out=out, budget=Budget(minutes, tokens), resume=resume, teacher=teacher, say=say
    )
