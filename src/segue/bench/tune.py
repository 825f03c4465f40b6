"""Which method, with which fields, for this model, these prompts and this machine: successive halving.

1. Candidates: every lossless method with its default fields, and variants of them with one field changed.
2. All of them and plain decoding answer a few prompts, alternately; the best third by speed against plain goes on.
3. Three times as many prompts, again the best third, until FINALISTS are left or prompts are exhausted.
4. The finalists answer all prompts in several rounds. The winner's interval must lie above plain's speed; else the
   answer is plain decoding.

Other variants of the model (int8, llama.cpp/q8_0, ...) take part where they are asked for. A candidate whose greedy
tokens differ from plain's on the same float32 weights is out. Source: Jamieson and Talwalkar, 2016
(arXiv:1502.07943).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue import catalog
from segue.bench.contest import Contestant, Row, contest
from segue.bench.figures import ratio
from segue.data import Settings
from segue.models.variant import Variant

FIRST, KEEP, FINALISTS, MOST = 3, 3, 3, 24  # prompts of the first rung, share kept, finalists, candidates
FACTORS = (0.25, 0.5, 2.0)
PLAIN = "plain"


@dataclass(frozen=True)
class Candidate:
    """A method with the fields that differ from its defaults."""

    method: str
    fields: tuple[tuple[str, Any], ...] = ()
    variant: Variant | None = None  # of the model, where it is not the one that was loaded

    @property
    def name(self) -> str:
        base = f"{self.method}@{self.variant}" if self.variant else self.method
        return ":".join([base, *(f"{key}={value}" for key, value in self.fields)])


@dataclass(frozen=True)
class Verdict:
    """The answer, and how it was come by."""

    winner: Candidate
    ratio: tuple[float, float, float]  # to plain, with 95% interval
    ranking: list[tuple[str, tuple[float, float, float], int]]  # finalists: name, ratio, answers equal to plain's
    tried: int
    disqualified: list[str]


def candidates(
    names: Sequence[str] | None, has_draft: bool, seed: int, variants: Sequence[Variant] = ()
) -> list[Candidate]:
    """Default of every method first, on the model as it is and plain as well on its other variants, then changes of a
    single field drawn from a seeded source."""
    defaults, changed = [], []
    for entry in catalog.entries().values():
        able = entry.able(has_draft) and entry.same_tokens
        if entry.name == PLAIN or not able or (names and entry.name not in names):
            continue
        defaults.append(Candidate(entry.name))
        knobs = {getattr(promise, "knob", "") for promise in entry.card.exact}
        for field in entry.fields:
            values: list[Any] = []
            if field.type == "int":
                values = sorted({round(field.default * factor) for factor in FACTORS} - {field.default})
            elif field.type == "bool":
                values = [not field.default]
            elif field.name == "budget":
                values = [value for value in ("gain", "thompson") if value != field.default]
            for value in values if field.name not in knobs else ():
                try:
                    catalog.build(entry.name, **{field.name: value})
                except ValueError:
                    continue
                changed.append(Candidate(entry.name, ((field.name, value),)))
    random.Random(seed).shuffle(changed)
    elsewhere = [
        Candidate(method, (), variant) for variant in variants for method in [PLAIN, *(c.method for c in defaults)]
    ]
    return [*defaults, *elsewhere, *changed[: max(0, MOST - len(defaults))]]


def tune(
    pool: list[Candidate],
    make: Callable[[Candidate], Contestant],
    prompts: list[list[int]],
    settings: Settings,
    *,
    strict: bool,
    journal: Callable[[int], Path | None] = lambda rung: None,
    setting: dict[str, Any] | None = None,
    rounds: int = 3,
    say: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Verdict:
    """Find the best candidate. `make` gives the contestant of a candidate; `strict` disqualifies other tokens than
    plain's; `journal` says where the finished rounds of a rung are kept."""
    plain = Candidate(PLAIN)
    out: list[str] = []
    tried, rung, size = len(pool), 0, FIRST
    while len(pool) > FINALISTS and size < len(prompts):
        rows = _rung(rung, pool, plain, make, prompts[:size], settings, 1, journal, setting, say)
        pool = _same(pool, rows, strict, out)
        speeds = {c.name: ratio(rows[c.name], rows[PLAIN])[0] for c in pool}
        ranked = sorted(pool, key=lambda c: -speeds[c.name])
        pool = ranked[: max(FINALISTS, len(ranked) // KEEP)]
        rung, size = rung + 1, size * 3
    pool = pool[:FINALISTS] if rung else pool
    rows = _rung(rung, pool, plain, make, prompts, settings, rounds, journal, setting, say)
    pool = _same(pool, rows, strict, out)
    ranking = []
    for c in pool:
        equal = sum(a == b for a, b in zip(rows[c.name].tokens, rows[PLAIN].tokens, strict=True))
        ranking.append((c.name, ratio(rows[c.name], rows[PLAIN]), equal))
    ranking.sort(key=lambda r: -r[1][0])
    best = next((c for c in pool if ranking and c.name == ranking[0][0]), plain)
    if best is plain or ranking[0][1][1] <= 1.0:
        return Verdict(plain, (1.0, 1.0, 1.0), ranking, tried, out)
    return Verdict(best, ranking[0][1], ranking, tried, out)


def words(verdict: Verdict, prompts: int) -> list[str]:
    """What was found, in plain words."""
    lines = [f"{verdict.tried} candidates were tried on up to {prompts} prompts, each alternately with plain decoding."]
    if verdict.winner == Candidate(PLAIN):
        lines.append("plain decoding is best here: nothing was faster with certainty.")
    else:
        middle, low, high = verdict.ratio
        lines.append(
            f"{verdict.winner.name} is best here: {middle:.2f} times plain decoding (95%: {low:.2f} to {high:.2f})."
        )
    for name, (middle, low, high), equal in verdict.ranking:
        lines.append(f"  {name}: {middle:.2f} ({low:.2f} to {high:.2f}), same tokens in {equal} of {prompts} answers")
    lines += [f"  out, because its tokens differed from plain decoding's: {name}" for name in verdict.disqualified]
    return lines


def _rung(
    number: int,
    pool: list[Candidate],
    plain: Candidate,
    make: Callable[[Candidate], Contestant],
    prompts: list[list[int]],
    settings: Settings,
    rounds: int,
    journal: Callable[[int], Path | None],
    setting: dict[str, Any] | None,
    say: Callable[[str, int, int], None],
) -> dict[str, Row]:
    players = [plain, *pool]
    text = f"rung {number + 1}: {len(pool)} candidates, {len(prompts)} prompts"
    known = {**(setting or {}), "rung": number, "players": [c.name for c in players]}
    rows = contest(
        [make(c) for c in players],
        prompts,
        settings,
        rounds=rounds,
        journal=journal(number),
        setting=known,
        progress=lambda done, total: say(text, done, total),
    )
    return {row.name: row for row in rows}


def _same(pool: list[Candidate], rows: dict[str, Row], strict: bool, out: list[str]) -> list[Candidate]:
    """Those whose tokens are plain's; the others are noted."""
    if not strict:
        return pool
    # Another precision may write another text: it is the user's choice to let it take part.
    wrong = [c for c in pool if c.variant is None and rows[c.name].tokens != rows[PLAIN].tokens]
    out += [c.name for c in wrong]
    return [c for c in pool if c not in wrong]
