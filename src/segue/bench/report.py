"""One self-contained HTML page of a contest: who won in words, the table, and four plots as inline SVG."""

from __future__ import annotations

import io
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #e3e6ea;font-variant-numeric:tabular-nums}
th{font-weight:600}td:first-child,th:first-child{text-align:left}tr.best td{background:#eef6ee}.small{color:#57606a;
font-size:.88rem}svg{width:100%;height:auto}.scroll{overflow-x:auto}"""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style | safe }}</style></head><body>
<h1>{{ title }}</h1><p class="small">{{ facts }}</p>
<div class="scroll"><table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in table %}<tr{% if loop.index0 == best %} class="best"{% endif %}>{% for cell in row %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
<p class="small">Speed: tokens per second against transformers greedy, median over rounds, 95% paired bootstrap over
prompts. Not looping: without outputs whose trigrams repeat (they flatter every drafter). Equal: answers with the
baseline's very tokens; margin: by how much the baseline's token led in logits where they differ first.</p>
{% for name, svg in plots %}<h2>{{ name }}</h2>{{ svg | safe }}{% endfor %}
<p class="small">{{ command }}</p></body></html>"""
COLOURS = ["#8c959f", "#57606a", "#b08800", "#0969da", "#1a7f37", "#bf3989", "#8250df", "#bc4c00", "#cf222e", "#0a7ea4"]


def page(
    records: list[dict[str, Any]], setting: dict[str, Any], curve: tuple[list[int], list[float]], rows: list[list[str]]
) -> str:
    """The HTML of a contest. `curve`: row counts and seconds of a forward; `rows`: the table, heads first."""
    ours = [r for r in records if "milliseconds_per_token" in r]
    plots = [
        ("Speed-up by task", svg(_speed, records)),
        ("What more rows cost: seconds of a forward over one row's", svg(_curve, curve)),
        ("Acceptance by position in the draft", svg(_acceptance, ours)),
        ("Where a token's time goes (milliseconds)", svg(_time, ours)),
    ]
    facts = (
        f"{setting['machine']} · {setting['threads']} threads · {setting['model']} in {setting['dtype']} · "
        + ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    )
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    best = max(range(len(records)), key=lambda i: records[i]["ratio"][0])
    html: str = template.render(
        style=STYLE,
        title=headline(records, setting),
        facts=facts,
        heads=rows[0],
        table=rows[1:],
        best=best,
        plots=plots,
        command=setting["command"],
    )
    return html


def headline(records: list[dict[str, Any]], setting: dict[str, Any]) -> str:
    """Who won, in plain words."""
    base, *others = records
    best = max(others, key=lambda r: r["ratio"][0]) if others else base
    middle, low, high = best["ratio"]
    return (
        f"{best['name']} is {middle:.2f} times {base['name']} greedy ({low:.2f} to {high:.2f}) on {setting['suite']}: "
        f"{base['prompts']} prompts, {setting['rounds']} rounds"
    )


def svg(draw: Any, data: Any, height: float = 4.2) -> str:
    """A figure that `draw` makes of the data on axes of its own, as inline SVG; `height` in inches of 10.5 by it."""
    with plt.rc_context(
        {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    ):
        figure, axes = plt.subplots(figsize=(10.5, height), layout="constrained")
        draw(axes, data)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _speed(axes: Any, records: list[dict[str, Any]]) -> None:
    kinds = [*records[0]["by_kind"], "all"]
    width = 0.84 / max(len(records) - 1, 1)
    for number, record in enumerate(records[1:]):
        values = [record["ratio"] if kind == "all" else record["by_kind"][kind] for kind in kinds]
        places = [i - 0.42 + (number + 0.5) * width for i in range(len(kinds))]
        middle = [v[0] for v in values]
        errors = [[max(0.0, v[0] - v[1]) for v in values], [max(0.0, v[2] - v[0]) for v in values]]
        axes.bar(places, middle, width * 0.94, color=COLOURS[number % len(COLOURS)], label=record["name"])
        axes.errorbar(places, middle, yerr=errors, fmt="none", ecolor="#24292f", elinewidth=0.8)
    axes.axhline(1.0, color="#24292f", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("times transformers greedy")
    axes.legend(frameon=False, ncols=3, fontsize=8)


def _curve(axes: Any, curve: tuple[list[int], list[float]]) -> None:
    rows, seconds = curve
    axes.plot(rows, [s / seconds[0] for s in seconds], marker="o", color="#0969da")
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, [str(r) for r in rows])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows scored in one forward")
    axes.set_ylabel("t(k) / t(1)")


def _acceptance(axes: Any, records: list[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        points = record["acceptance_by_position"][:16]
        if points:
            colour = COLOURS[(number + 3) % len(COLOURS)]
            axes.plot(range(1, len(points) + 1), points, marker="o", markersize=4, color=colour, label=record["name"])
    axes.set_ylim(0, 1)
    axes.set_xlabel("position")
    axes.set_ylabel("share of drafts accepted up to here")
    axes.legend(frameon=False, fontsize=8)


def _time(axes: Any, records: list[dict[str, Any]]) -> None:
    left = [0.0] * len(records)
    names = [r["name"] for r in records]
    for number, part in enumerate(("prefill", "verifying", "drafting", "other")):
        values = [r["milliseconds_per_token"][part] for r in records]
        axes.barh(names, values, left=left, color=("#c8d1da", "#0969da", "#1a7f37", "#d4a72c")[number], label=part)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, fontsize=8)
    axes.set_xlabel("milliseconds per new token")
