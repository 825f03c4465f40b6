"""One self-contained HTML page of a load: the verdict, tables, and curves of speed and memory as inline SVG."""

from __future__ import annotations

from typing import Any

import jinja2

from segue.bench.load.session import table, verdict
from segue.bench.report import STYLE, svg

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style | safe }}
.fault{color:#a40e26}</style></head><body>
<h1>{{ title }}</h1><p class="small">{{ facts }}</p>
{% for fault in faults %}<p class="fault">{{ fault }}</p>{% endfor %}
<div class="scroll"><table><tr>{% for head in rows[0] %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="small">Ratio: tokens per second of many clients over one, each client with as many questions, in turns; with
the 95% of a paired bootstrap over the turns. Times to the first token and between pieces are the clients', of
streams; tokens of one round of drafting arrive as one piece. Tokens per forward: of all clients together.</p>
<h2>The mixed load</h2><div class="scroll"><table><tr><th></th><th>requests</th><th>tokens</th><th>came to</th>
<th>seconds p50 / p95 / most</th><th>first token p50 / p95 / most, seconds</th></tr>
{% for kind in kinds %}<tr><td>{{ kind.kind }}</td><td>{{ kind.requests }}</td><td>{{ kind.tokens }}</td>
<td>{% for status, count in kind.outcomes.items() %}{{ status }}: {{ count }} {% endfor %}</td>
<td>{{ kind.request_seconds | times }}</td><td>{{ kind.first_token_seconds | times }}</td></tr>
{% endfor %}</table></div>
<p class="small">499: the client went away, as it was told to. Deadlines of a few hundredths of a second may be
missed (504), wrong requests are refused (400).</p>
<h2>Memory</h2><div class="scroll"><table><tr><th></th><th>before</th><th>peak</th><th>after</th></tr>
{% for row in memory %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>
{% for name, figure in plots %}<h2>{{ name }}</h2>{{ figure | safe }}{% endfor %}
<p class="small">{{ command }}</p></body></html>"""


def page(report: dict[str, Any]) -> str:
    """The HTML of a load."""
    setting, memory = report["setting"], report["memory"]
    facts = (
        f"{setting['machine']} · {setting['threads']} threads · {setting['model']} in {setting['dtype']} · prompts of "
        f"{min(setting['prompt_tokens'])} to {max(setting['prompt_tokens'])} tokens · "
        + ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    )
    plots = [("Tokens per second, one client and many", svg(_speed, report["scaling"]))]
    plots += [(f"{name} over time (MB)", svg(_curve, (memory["seen"], key), 2.6)) for name, key in _known(memory)]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["times"] = _times
    html: str = environment.from_string(PAGE).render(
        style=STYLE,
        title=f"{setting['model']} under load: {verdict(report)}",
        facts=facts,
        faults=report["faults"],
        rows=table(report),
        kinds=report["mixed"]["kinds"],
        memory=[_row(name, memory, key) for name, key in _known(memory)],
        plots=plots,
        command=setting["command"],
    )
    return html


def _known(memory: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"rss": "Memory of the process", "kv_bytes": "Cache rows set aside", "prefix_bytes": "Prompts kept"}
    return [(name, key) for key, name in names.items() if key in memory["base"]]


def _row(name: str, memory: dict[str, Any], key: str) -> list[str]:
    peak = max(look[key] for look in memory["seen"])
    return [name, *(f"{value / 1e6:.1f} MB" for value in (memory["base"][key], peak, memory["end"][key]))]


def _times(values: list[float] | None) -> str:
    return " / ".join(f"{value:.3f}" for value in values) if values else "-"


def _speed(axes: Any, scaling: list[dict[str, Any]]) -> None:
    """A point for every turn, one client beside many."""
    for place, way in enumerate(scaling):
        for side, colour, shift in (("one", "#8c959f", -0.08), ("many", "#0969da", 0.08)):
            rates = [part["tokens_per_second"] for part in way[side]]
            axes.plot(
                [place + shift] * len(rates), rates, "o", color=colour, alpha=0.7, label=side if not place else None
            )
    names = [f"{way['method']}, {'streamed' if way['stream'] else 'whole'}" for way in scaling]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second")
    axes.legend(frameon=False)


def _curve(axes: Any, data: tuple[list[dict[str, float]], str]) -> None:
    seen, key = data
    axes.plot([look["at"] for look in seen], [look[key] / 1e6 for look in seen], color="#0969da")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
