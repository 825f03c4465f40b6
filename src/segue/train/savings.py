"""What a method saves behind held-out prompts: tokens per forward of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segue.data import Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.run import Run

PROMPTS = 32  # held-out beginnings
ANSWER = 64  # tokens written behind each


def savings(lm: LM, method: Any, prompts: Sequence[Sequence[int]], temperature: float = 0.0) -> dict[str, float]:
    """Tokens per forward, prompts' own forwards apart, and the share of drafted tokens that were right, in percent."""
    engine, jobs = Engine(), []
    for number, prompt in enumerate(prompts):
        run = Run(lm, list(prompt), Settings(max_tokens=ANSWER, temperature=temperature, seed=number))
        jobs.append(engine.add(run, method.run(run)))
    engine.drain(jobs)
    runs = [job.run for job in jobs]
    tokens = sum(run.stats.tokens - 1 for run in runs)
    forwards = sum(run.stats.target_forwards - run.stats.prefill_forwards for run in runs)
    found = {"tokens_per_forward": round(tokens / max(forwards, 1), 3)}
    drafted = sum(run.stats.drafted for run in runs)
    if drafted:
        found["right"] = round(100 * sum(run.stats.accepted for run in runs) / drafted, 2)
    return found
