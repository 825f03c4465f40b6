"""A page about a finished training: the loss curve, the held-out scores, and how it was made."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, EDGE = 720, 260, 46
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}pre{white-space:pre-wrap}"
)


def page(summary: Mapping[str, Any], curve: Sequence[Mapping[str, float]]) -> str:
    """One self-contained HTML page; `curve` has tokens and loss at every point."""
    title = html.escape(f"segue train {summary['recipe']}")
    rows = "".join(_row(name, scores) for name, scores in summary["heldout"].items())
    facts = {key: value for key, value in summary.items() if key != "heldout"}
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><h2>Loss</h2>{_plot(curve)}<h2>Held out</h2>"
        f"<table><tr><th>part</th><th>measure</th><th>value</th></tr>{rows}</table>"
        f"<h2>Run</h2><pre>{html.escape(json.dumps(facts, indent=1))}</pre></body></html>\n"
    )


def _row(name: str, scores: Mapping[str, float]) -> str:
    return "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(measure)}</td><td>{value:g}</td></tr>"
        for measure, value in scores.items()
    )


def _plot(curve: Sequence[Mapping[str, float]]) -> str:
    """The loss over the tokens as a line with its ends labelled."""
    if not curve:
        return "<p>No steps were logged.</p>"
    losses = [point["loss"] for point in curve]
    low, high = min(losses), max(losses)
    last = max(curve[-1]["tokens"], 1)

    def place(point: Mapping[str, float]) -> str:
        x = EDGE + (WIDTH - 2 * EDGE) * point["tokens"] / last
        y = HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (point["loss"] - low) / max(high - low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(point) for point in curve)
    labels = (
        f'<text x="{EDGE - 6}" y="{EDGE}" text-anchor="end">{high:.2f}</text>'
        f'<text x="{EDGE - 6}" y="{HEIGHT - EDGE}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - EDGE + 22}" text-anchor="end">{last:,} tokens</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over tokens" fill="currentColor" '
        f'font-size="13">{labels}<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def write_page(folder: Path, summary: Mapping[str, Any], curve: Sequence[Mapping[str, float]]) -> None:
    (folder / "report.html").write_text(page(summary, curve))
