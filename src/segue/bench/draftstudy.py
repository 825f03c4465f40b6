"""Which draft model for a target, and how many tokens it should draft (Decoding Speculative Decoding, 2402.01528).

1. t_target(k) and t_draft(1), the seconds of a forward, are measured: each model alone (models/cost.py), or both
   taking turns (draftcosts.py).
2. The draft reads the target's greedy answers (drafttrace.py); from where it agrees follow, for every gamma, the rounds
   of draft and verify and the mean number of accepted tokens E[accepted | gamma].
3. throughput(gamma) = (1 + E[accepted | gamma]) / (gamma t_draft + t_target(gamma + 1) + o), where o is what our own
   code takes in a drafted round (the paper's formula has none); throughput(0) = 1 / t_target(1).
4. gamma pays where 1 + E > c = (gamma t_draft + t_target(gamma + 1) + o) / t_target(1). With a token accepted with
   probability alpha after accepted ones, 1 + E = 1 + alpha + ... + alpha^gamma: the break-even acceptance solves that
   for c. At gamma = 1 it is c - 1.
5. On request, draft_model with that gamma takes turns with plain decoding, and the ratio is set against the predicted.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import segue
from segue.api import Model
from segue.bench.contest import Ours, contest
from segue.bench.drafttrace import Answer, Round, Trace, hits, rounds
from segue.bench.figures import ratio
from segue.data import Settings
from segue.decode.plain import Plain
from segue.decode.speculative.draft_model import DraftModel
from segue.models.cost import Cost, processor
from segue.models.lm import LM
from segue.models.shape import shape_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Point:
    """What drafting gamma tokens a round comes to."""

    gamma: int
    accepted: float  # E[accepted | gamma], the mean over the rounds
    seconds: float  # of a round
    throughput: float  # tokens a second
    ratio: float  # to plain decoding
    answers_ratio: float  # the same over whole answers: prompts read, rounds as they were
    break_even: float | None  # acceptance of a token from which on gamma pays; None: not even a perfect draft does


@dataclass(frozen=True)
class Study:
    """One draft model under one target."""

    draft: str
    layers: int | None
    width: int | None
    parameters: int | None
    layer_parameters: int | None
    latency: float  # seconds of a step
    relative_latency: float  # to a step of the target
    acceptance: list[float]  # at d: share of places from which d + 1 tokens are accepted
    points: list[Point]  # by gamma, from 0

    @property
    def best(self) -> Point:
        return max(self.points, key=lambda point: point.throughput)

    @property
    def break_even(self) -> float | None:
        """The lowest acceptance of a token at which any gamma pays."""
        return min((p.break_even for p in self.points if p.break_even is not None), default=None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"best_gamma": self.best.gamma, "break_even": self.break_even}


def study(
    trace: Trace,
    draft: LM,
    most: int,
    *,
    name: str | None = None,
    costs: tuple[Cost, Cost] | None = None,
    progress: Progress = lambda a, b: None,
) -> Study:
    """Judge a draft model for gamma = 0 .. most; the target itself is not needed. `costs`: curves of target and draft,
    where they are not those that each was measured with alone."""
    trace.check_draft(draft)
    if most < 1:
        raise ValueError(f"at most {most} drafted tokens is not allowed: at least 1")
    if not any(len(answer.tokens) > 1 for answer in trace.answers):
        raise ValueError(f"the answers of {trace.model} have no second token: there is nothing to draft")
    found = []
    for number, answer in enumerate(trace.answers):
        progress(number, len(trace.answers))
        found.append(hits(draft, answer, trace.vocab_size))
    progress(len(found), len(found))
    costs = costs or (trace.cost, draft.cost)
    points = [_point(trace, draft, costs, found, gamma) for gamma in range(most + 1)]
    shape = shape_of(draft)
    facts = asdict(shape) if shape else dict.fromkeys(("layers", "width", "parameters", "layer_parameters"))
    latency = costs[1].step(1)
    return Study(
        name or draft.name,
        **facts,
        latency=latency,
        relative_latency=latency / costs[0].step(1),
        acceptance=_survival(found, most),
        points=points,
    )


def _survival(found: list[list[bool]], most: int) -> list[float]:
    """At d: the share of places, of those with so much text left, from which the next d + 1 tokens are all hits."""
    shares = []
    for depth in range(1, most + 1):
        windows = [all(hit[at : at + depth]) for hit in found for at in range(1, len(hit) - depth + 1)]
        if windows:
            shares.append(sum(windows) / len(windows))
    return shares


def _point(trace: Trace, draft: LM, costs: tuple[Cost, Cost], found: list[list[bool]], gamma: int) -> Point:
    target, small = costs
    runs = [rounds(trace, a, hit, gamma, draft.context_length) for a, hit in zip(trace.answers, found, strict=True)]
    done = [r for run in runs for r in run]
    accepted = sum(r.kept for r in done) / len(done)
    plain = target.step(1)
    seconds = round_seconds(target, small, gamma)
    whole = [answer_seconds(target, small, a, run) for a, run in zip(trace.answers, runs, strict=True)]
    without = [answer_seconds(target, small, a, [Round(0, 0)] * (len(a.tokens) - 1)) for a in trace.answers]
    return Point(
        gamma,
        accepted,
        seconds,
        (1 + accepted) / seconds,
        (1 + accepted) * plain / seconds,
        sum(without) / sum(whole),
        break_even(seconds / plain, gamma) if gamma else None,
    )


def round_seconds(target: Cost, draft: Cost, gamma: int) -> float:
    """Seconds of a round with gamma drafted tokens."""
    return gamma * draft.step(1) + target.step(gamma + 1) + (target.overhead if gamma else 0.0)


def answer_seconds(target: Cost, draft: Cost, answer: Answer, run: Sequence[Round]) -> float:
    """Seconds of one answer whose rounds are known. The draft reads the prompt at its first step, and two tokens at the
    first step after a draft that was accepted whole."""
    length = len(answer.prompt)
    seconds = target.step(length)
    unread = length + 1
    for r in run:
        if not r.offered:
            seconds += target.step(1)
            unread += 1
            continue
        seconds += draft.step(unread) - draft.step(1)
        seconds += round_seconds(target, draft, r.offered)
        unread = 2 if r.kept == r.offered else 1
    return seconds


def break_even(cost: float, gamma: int) -> float | None:
    """The acceptance alpha with 1 + alpha + ... + alpha^gamma = cost, a round's cost in plain steps; None where even 1
    is too little."""
    if cost > gamma + 1:
        return None
    if gamma == 1:
        return max(cost - 1, 0.0)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(gamma + 1)) < cost else (low, middle)
    return high


def measure(
    model: Model,
    drafts: dict[str, LM],
    gammas: dict[str, list[int]],
    trace: Trace,
    turns: int,
    *,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Measured ratios to plain decoding of draft_model with the given gammas, all taking turns on the prompts."""
    pairs = [(name, gamma) for name in drafts for gamma in gammas[name]]
    players = [Ours("plain", model, Plain())]
    players += [
        Ours(f"{name} gamma={gamma}", model, DraftModel(draft=drafts[name], gamma=gamma)) for name, gamma in pairs
    ]
    prompts = [answer.prompt for answer in trace.answers]
    rows = contest(players, prompts, Settings(max_tokens=trace.max_tokens), rounds=turns, progress=progress)
    measured = []
    for (name, gamma), row in zip(pairs, rows[1:], strict=True):
        middle, low, high = ratio(row, rows[0])
        measured.append(
            {
                "draft": name,
                "gamma": gamma,
                "ratio": middle,
                "interval": [low, high],
                "equal": sum(a == b for a, b in zip(row.tokens, rows[0].tokens, strict=True)),
                "accepted": sum(s["accepted"] for s in row.stats) / max(1, sum(s["rounds"] for s in row.stats)),
            }
        )
    return measured


def compare(studies: list[Study], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each measured ratio beside what was predicted for it, and how far off that was."""
    known = {(s.draft, p.gamma): p for s in studies for p in s.points}
    lines = []
    for m in measured:
        point = known[m["draft"], m["gamma"]]
        predicted = {"predicted": point.ratio, "predicted_answers": point.answers_ratio}
        lines.append(m | predicted | {"error": point.answers_ratio / m["ratio"] - 1})
    return lines


def setting(trace: Trace, command: str) -> dict[str, Any]:
    """What is needed to read the figures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "threads": torch.get_num_threads(),
        "versions": {"segue": segue.__version__, "torch": torch.__version__},
        "answers": len(trace.answers),
        "tokens": sum(len(answer.tokens) for answer in trace.answers),
        "command": command,
        "commit": commit.stdout.strip() or None,
    }
