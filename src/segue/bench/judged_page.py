"""One self-contained HTML page of a comparison by quality: the table, quality against cost, and quality by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from segue.bench.report import COLOURS, STYLE, svg

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style | safe }}
td,th{white-space:pre;vertical-align:top}</style></head><body>
<h1>{{ title }}</h1><p class="small">{{ facts }}</p>
<div class="scroll"><table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in table %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="small">A figure, and below it what it has over plain on the same prompts, with the 95% interval of that
(paired bootstrap over prompts); for plain the interval of the figure itself, for seconds their ratio to plain's. log p:
of the answer under the model itself. Costs are over the prompts that both gave an answer to. rows: tokens that the
model read.</p>
{% for note in notes %}<p class="small">{{ note }}</p>{% endfor %}
{% for name, figure in plots %}<h2>{{ name }}</h2>{{ figure | safe }}{% endfor %}
<p class="small">{{ command }}</p></body></html>"""


def page(
    records: list[dict[str, Any]],
    setting: dict[str, Any],
    rows: list[list[str]],
    columns: Sequence[tuple[str, str]],
    notes: list[str],
) -> str:
    """The HTML of a comparison. `rows`: the table, heads first; the first of `columns` is what the plots are about."""
    key, head = columns[0]
    plots = [
        (f"{head} against what it costs", svg(_costs, (records, key, head))),
        (f"{head} by kind", svg(_kinds, (records, key, head))),
    ]
    facts = (
        f"{setting['machine']} · {setting['threads']} threads · {setting['model']} in {setting['dtype']} · "
        + ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    )
    html: str = (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=f"{setting['suite']}: {len(records)} ways to answer {setting['prompts']} prompts",
            style=STYLE,
            facts=facts,
            heads=rows[0],
            table=rows[1:],
            notes=notes,
            plots=plots,
            command=setting["command"],
        )
    )
    return html


def _costs(axes: Any, data: tuple[list[dict[str, Any]], str, str]) -> None:
    records, key, head = data
    for number, record in enumerate(records):
        figures = record["figures"]
        if "rows_per_token" not in figures:
            continue
        (x, *_), (y, low, high) = figures["rows_per_token"]["value"], figures[key]["value"]
        error = [[max(0.0, y - low)], [max(0.0, high - y)]]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar([x], [y], yerr=error, fmt="o", color=colour, elinewidth=0.8, label=record["name"])
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens that the model read per token of the answer")
    axes.set_ylabel(head)
    axes.legend(frameon=False, ncols=3, fontsize=7)


def _kinds(axes: Any, data: tuple[list[dict[str, Any]], str, str]) -> None:
    records, key, head = data
    kinds = list(dict.fromkeys(kind for record in records for kind in record["by_kind"]))
    width = 0.84 / len(records)
    for number, record in enumerate(records):
        places = [i - 0.42 + (number + 0.5) * width for i, kind in enumerate(kinds) if kind in record["by_kind"]]
        values = [record["by_kind"][kind][key] for kind in kinds if kind in record["by_kind"]]
        axes.bar(places, values, width * 0.94, color=COLOURS[number % len(COLOURS)], label=record["name"])
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel(head)
