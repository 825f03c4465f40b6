"""Checkpoints of a run: written whole or not at all, the last two kept."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as the checkpoint of `step` and drop all but the last two."""
    path = folder / f"step-{step:07d}.pt"
    staging = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"cannot write the checkpoint {path}: {error}; free some space or name another out folder, "
            "then run the same command again to continue from the last complete checkpoint"
        ) from error
    for old in [*_steps(folder)[:-KEPT], *folder.glob("step-*.new")]:  # .new: left by a killed run
        old.unlink()


def latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none."""
    paths = _steps(folder)
    for path in reversed(paths):
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            return state
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            say(f"checkpoint {path.name} cannot be read ({type(error).__name__}); trying the one before it")
    if paths:
        raise ValueError(f"none of the checkpoints in {folder} can be read; delete the folder to start again")
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
