"""One self-contained HTML page of a comparison by quality: the table, what each has over plain, and quality by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from segue.bench.report import STYLE, svg

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
{% if kinds %}<h2>{{ head }} by kind</h2><div class="scroll"><table>
<tr><th></th>{% for kind in kinds %}<th>{{ kind }}</th>{% endfor %}</tr>
{% for record in records %}<tr><td>{{ record.name }}</td>{% for kind in kinds %}<td>
{%- if kind in record.by_kind %}{{ "%.1f" | format(record.by_kind[kind][key]) }}{% else %}-{% endif %}</td>
{%- endfor %}</tr>
{% endfor %}</table></div>{% endif %}
<p class="small">{{ command }}</p></body></html>"""
ROW = 0.3  # inches of a plot for each entrant


def page(
    records: list[dict[str, Any]],
    setting: dict[str, Any],
    rows: list[list[str]],
    columns: Sequence[tuple[str, str]],
    notes: list[str],
) -> str:
    """The HTML of a comparison. `rows`: the table, heads first; the first two of `columns` are what the plots show."""
    height = 1.0 + ROW * len(records)
    shown = [(key, f"{head}, over plain") for key, head in columns[:2]] + [("seconds", "Seconds, times plain's")]
    plots = [(head, svg(_forest, (records, key), height)) for key, head in shown]
    kinds = list(dict.fromkeys(kind for record in records for kind in record["by_kind"]))
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
            records=records,
            kinds=kinds if len(kinds) > 1 else [],
            key=columns[0][0],
            head=columns[0][1],
            command=setting["command"],
        )
    )
    return html


def _forest(axes: Any, data: tuple[list[dict[str, Any]], str]) -> None:
    """A line for each entrant: the difference to plain (of seconds the ratio) with its interval."""
    records, key = data
    known = [(r["name"], r["figures"][key]["to_plain"]) for r in records if "to_plain" in r["figures"].get(key, {})]
    for place, (_, (middle, low, high)) in enumerate(known):
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar([middle], [place], xerr=error, fmt="o", color="#0969da", ecolor="#57606a", elinewidth=1.2)
    axes.axvline(1.0 if key == "seconds" else 0.0, color="#24292f", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(known)), [name for name, _ in known])
    axes.invert_yaxis()
    if key == "seconds":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
