"""The one training loop: batches in, gradient steps, checkpoints out, driven by a budget of minutes or tokens."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segue.train import checkpoints
from segue.train.journal import Journal
from segue.train.page import write_page
from segue.train.provenance import provenance
from segue.train.publish import loss_curve
from segue.train.recipes import Recipe
from segue.train.task import Task

CHECKPOINT_SECONDS = 120.0
EXPORT_SECONDS = 600.0  # between small evaluations, each with a usable model
STAMP = "recipe.json"  # says whose work a folder holds


@dataclass(frozen=True)
class Budget:
    """How much training to do: exactly one of the two is set."""

    minutes: float | None
    tokens: int | None

    def spent(self, seconds: float, tokens: int) -> float:
        """The fraction of the budget used up, 1 or more when it is finished."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        assert self.tokens is not None
        return tokens / self.tokens

    def option(self) -> str:
        """The budget as it is typed."""
        return f"--minutes {self.minutes:g}" if self.minutes is not None else f"--tokens {self.tokens}"


@dataclass
class Run:
    """A training run in flight: everything a checkpoint must hold."""

    recipe: Recipe
    task: Task
    optimisers: list[torch.optim.Optimizer]  # of the hidden matrices, where they have one of their own, and the rest
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.task.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "place": self.task.place,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.task.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.task.place = state["place"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def export(self, folder: Path) -> None:
        """What can be used, as training stands."""
        facts = {"recipe": self.recipe.name, "steps": self.step, "tokens": self.tokens}
        self.task.export(folder, facts | {"minutes": round(self.seconds / 60, 2)})


def run_recipe(
    recipe: Recipe,
    make: Callable[[], Task],
    *,
    out: Path,
    budget: Budget,
    command: str,
    resume: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train `recipe` in the work folder `out` until `budget` is spent; return the summary.

    `make` gives its task once the folder is known to be its own, and prepares the data there; `command` is what a
    reader types for the same. `out` receives recipe.json, the data, checkpoints/, log.jsonl, summary.json,
    report.html and what was trained in model/.
    """
    _keep_freed_memory()
    _claim(out, recipe)
    say(f"preparing the data in {out}")
    run = _start(recipe, make())
    saved = checkpoints.latest(out / "checkpoints", say)
    if saved is not None and not resume:
        raise ValueError(f"{out} already holds checkpoints; resume, or name another out folder")
    if saved is not None:
        run.restore(saved)
        say(f"resuming at step {run.step} after {run.tokens:,} tokens and {run.seconds / 60:.1f} minutes")
    with Journal(out, recipe.name, run.step, say) as journal:
        try:
            _train(run, budget, out, journal)
        except KeyboardInterrupt:
            checkpoints.save(out / "checkpoints", run.step, run.state())
            journal.say(f"stopped at step {run.step}; the same command continues from here")
            raise
        checkpoints.save(out / "checkpoints", run.step, run.state())
        run.export(out / "model")
        journal.say("evaluating on the held-out parts")
        scores = run.task.evaluate(quick=False)
        summary = journal.finish(
            {
                "recipe": recipe.name,
                "command": f"{command} {budget.option()}",
                "seed": recipe.seed,
                "parameters": sum(weight.numel() for weight in run.task.model.parameters()),
                "budget": asdict(budget),
                "steps": run.step,
                "tokens": run.tokens,
                "minutes": round(run.seconds / 60, 2),
                **run.task.facts(),
                "heldout": scores,
                "made_on": provenance(),
            },
            run.task.told,
        )
    write_page(out, summary, loss_curve(out / "log.jsonl"))
    return summary


def _claim(out: Path, recipe: Recipe) -> None:
    """Mark the folder as this recipe's; ValueError where it holds the work of another, or of other numbers."""
    stamp = out / STAMP
    if not stamp.exists():
        if any((out / part).exists() for part in ("tokens", "states")) or (out / "checkpoints").exists():
            raise ValueError(
                f"{out} holds the work of an earlier version of segue, which does not say by which recipe; "
                "name another out folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        staging = stamp.with_suffix(".new")
        staging.write_text(json.dumps({"recipe": recipe.name, "numbers": recipe.fingerprint()}, indent=1) + "\n")
        os.replace(staging, stamp)
        return
    found = json.loads(stamp.read_text())
    if found["recipe"] != recipe.name:
        raise ValueError(
            f"{out} holds the work of recipe {found['recipe']!r}, not of {recipe.name!r}; name another out folder"
        )
    if found["numbers"] != recipe.fingerprint():
        raise ValueError(
            f"the work in {out} was made by other numbers than recipe {recipe.name!r} has now; name another out folder"
        )


def _start(recipe: Recipe, task: Task) -> Run:
    modules = list(task.model.modules())
    tables = {id(part.weight) for part in modules if isinstance(part, torch.nn.Embedding)}
    matrices = {id(part.weight) for part in modules if isinstance(part, torch.nn.Linear)} if recipe.muon_lr else set()
    hidden: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for weight in task.model.parameters():
        (hidden if id(weight) in matrices - tables else rest).append(weight)
    optimisers: list[torch.optim.Optimizer] = []
    if hidden:
        optimisers.append(torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    optimisers.append(torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0))
    return Run(recipe, task, optimisers)


def rate(recipe: Recipe, spent: float) -> float:
    """The factor on the learning rates: warm-up, plateau, linear decay to 0."""
    if spent < recipe.warm_until:
        return max(spent / recipe.warm_until, 0.02)
    return min(1.0, max(0.0, (1.0 - spent) / (1.0 - recipe.decay_from)))


def _train(run: Run, budget: Budget, out: Path, journal: Journal) -> None:
    since_checkpoint = since_export = 0.0
    while (spent := budget.spent(run.seconds, run.tokens)) < 1.0:
        began = time.perf_counter()
        loss, norm = _step(run, spent)
        took = time.perf_counter() - began
        run.seconds += took
        journal.step(run.step, loss, norm, run.tokens, run.seconds, budget.spent(run.seconds, run.tokens))
        since_checkpoint += took
        since_export += took
        if since_checkpoint > CHECKPOINT_SECONDS:
            checkpoints.save(out / "checkpoints", run.step, run.state())
            since_checkpoint = 0.0
        if since_export > EXPORT_SECONDS:
            run.export(out / "model")
            journal.scores(run.step, run.task.evaluate(quick=True), run.task.told)
            since_export = 0.0


def _step(run: Run, spent: float) -> tuple[float, float]:
    recipe = run.recipe
    entropy = 0.0
    for part in run.task.passes(spent):
        torch.autograd.backward(part.loss * part.share)
        entropy += part.entropy * part.share
        run.tokens += part.tokens
    norm = torch.nn.utils.clip_grad_norm_(run.task.model.parameters(), recipe.clip).item()
    factor = rate(recipe, spent)
    for optimiser, top in zip(reversed(run.optimisers), (recipe.adam_lr, recipe.muon_lr), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = top * factor
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    run.step += 1
    return entropy, norm


def _keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks, not return them to the system: a third more tokens per second."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**31 - 1)
