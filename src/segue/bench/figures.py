"""From times and tokens to the figures of a report: ratios with intervals, loops apart, acceptance, where time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from segue.bench.bootstrap import Interval, draws, interval
from segue.bench.contest import Row

LOOPING = 0.6  # share of distinct trigrams below which an output mostly repeats itself


def looping(tokens: Sequence[int]) -> bool:
    """Whether an output mostly repeats itself: loops flatter every drafter."""
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return bool(trigrams) and len(set(trigrams)) / len(trigrams) < LOOPING


def ratio(row: Row, base: Row, prompts: Sequence[int] | None = None, seed: int = 0) -> Interval:
    """How many times as fast as `base`, in tokens per second: the median over rounds of the ratio of sums over prompts,
    with a paired bootstrap over prompts (both contestants keep the prompts that were drawn)."""
    chosen = np.arange(len(row.tokens)) if prompts is None else np.array(prompts)
    ours, theirs = np.array(row.seconds)[:, chosen], np.array(base.seconds)[:, chosen]  # (rounds, prompts)
    count = np.array([len(t) for t in row.tokens])[chosen]
    base_count = np.array([len(t) for t in base.tokens])[chosen]
    weights = draws(len(chosen), seed)
    speed = (weights @ count)[:, None] / (weights @ ours.T)
    base_speed = (weights @ base_count)[:, None] / (weights @ theirs.T)
    return interval(np.median(speed / base_speed, axis=1))


def summary(rows: list[Row], kinds: list[str], margins: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """One record for each contestant; the first row is the baseline. `margins`: per contestant the logit margins at the
    first differing token of every answer that is not the baseline's."""
    base = rows[0]
    plains = {row.name.partition("@")[2]: row for row in rows if row.name.partition("@")[0] == "plain"}
    straight = [i for i, tokens in enumerate(base.tokens) if not looping(tokens)]
    for row in rows:
        count = sum(map(len, row.tokens))
        gaps = margins.get(row.name, [])
        record: dict[str, Any] = {
            "name": row.name,
            "tokens_per_second": round(float(np.median([count / sum(r) for r in row.seconds])), 1),
            "ratio": _rounded(ratio(row, base)),
            "ratio_not_looping": _rounded(ratio(row, base, straight)) if straight else None,
            "ratio_to_plain": _rounded(ratio(row, plain)) if (plain := _plain_of(row, plains)) else None,
            "by_kind": {
                kind: _rounded(ratio(row, base, [i for i, k in enumerate(kinds) if k == kind]))
                for kind in dict.fromkeys(kinds)
            },
            "equal": sum(a == b for a, b in zip(row.tokens, base.tokens, strict=True)),
            "margin_median": round(float(np.median(gaps)), 4) if gaps else None,
            "margin_largest": round(max(gaps), 4) if gaps else None,
            "prompts": len(kinds),
            "looping": len(kinds) - len(straight),
            "memory_growth_bytes": row.growth,
            "tokens": count,
        }
        yield record | (_costs(row.stats, straight) if row.stats else {})


def _plain_of(row: Row, plains: dict[str, Row]) -> Row | None:
    """Plain decoding on the same variant of the model as a contestant: "auto@int8" is compared with "plain@int8"."""
    return plains.get(row.name.partition("@")[2].partition(":")[0], plains.get(""))


def _costs(stats: list[dict[str, Any]], straight: list[int]) -> dict[str, Any]:
    """What our own statistics say about a contestant."""
    tokens = sum(s["tokens"] for s in stats)
    drafted = sum(s["drafted"] for s in stats)
    deepest = max(len(s["offered"]) for s in stats)
    offered = [sum(s["offered"][d] for s in stats if d < len(s["offered"])) for d in range(deepest)]
    kept = [sum(s["kept"][d] for s in stats if d < len(s["kept"])) for d in range(deepest)]
    methods: dict[str, int] = {}
    for s in stats:
        for name, rounds in s["methods"].items():
            methods[name] = methods.get(name, 0) + rounds
    return {
        "tokens_per_forward": _per_forward(stats),
        "tokens_per_forward_not_looping": _per_forward([stats[i] for i in straight]) if straight else None,
        "acceptance": round(sum(s["accepted"] for s in stats) / drafted, 3) if drafted else None,
        "acceptance_by_position": [round(k / o, 3) for k, o in zip(kept, offered, strict=True)],
        "target_forwards": sum(s["target_forwards"] for s in stats),
        "draft_forwards": sum(s["draft_forwards"] for s in stats),
        "milliseconds_per_token": {
            part: round(1000 * sum(s[f"{part}_seconds"] for s in stats) / tokens, 3)
            for part in ("prefill", "drafting", "verifying", "other")
        },
        "methods": dict(sorted(methods.items(), key=lambda m: -m[1])),
    }


def _per_forward(stats: list[dict[str, Any]]) -> float:
    forwards = sum(s["target_forwards"] - s["prefill_forwards"] + 1 for s in stats)
    return float(round(sum(s["tokens"] for s in stats) / forwards, 3))


def _rounded(interval: Interval) -> list[float]:
    return [round(x, 3) for x in interval]
