"""One self-contained HTML page of a lattice: its graph from left to right, and the answers that were chosen from it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jinja2

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ title }}</title><style>
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#57606a;--line:#d0d7de;--best:#1a7f37;--ref:#8250df;
--mark:#bc4c00}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--soft:#9198a1;--line:#30363d;--best:#3fb950;
--ref:#a371f7;--mark:#db6d28}}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:var(--ink);
background:var(--paper)}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.1rem;margin-top:1.8rem}.small{color:var(--soft);font-size:.88rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--line);margin:.4rem 0;padding:.2rem .8rem;
font:inherit}
dl{display:flex;flex-wrap:wrap;gap:.3rem 1.6rem;margin:1rem 0}dt{color:var(--soft);font-size:.88rem}
dd{margin:0;font-weight:600}
.scroll{overflow:auto;max-height:85vh;border:1px solid var(--line)}
table{border-collapse:collapse;font-size:.92rem}caption{text-align:left;padding:.4rem 0}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
#told{min-height:4.5em}
svg{display:block;font:12px ui-monospace,monospace}svg text{fill:var(--ink)}
svg rect{fill:var(--paper);stroke:var(--line);stroke-width:1}svg .ends rect{stroke-dasharray:none;stroke-width:3}
svg path{fill:none;stroke:var(--soft)}
svg .best rect{stroke:var(--best);stroke-width:2}svg .best text{font-weight:700}
svg path.best{stroke:var(--best);opacity:1!important}
svg .ref rect{fill:var(--ref);fill-opacity:.25}svg path.ref{stroke:var(--ref);stroke-dasharray:6 3;opacity:1!important}
svg .on rect{stroke:var(--mark);stroke-width:3}svg path.on{stroke:var(--mark);opacity:1!important}
svg g{cursor:pointer}svg g:focus{outline:none}svg g:focus rect{stroke:var(--mark);stroke-width:3}
ul.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.4rem 1.4rem}
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ words }}</p>
<h2>Prompt</h2><pre>{{ prompt }}</pre>
<h2>Text</h2><pre>{{ text }}</pre>
<dl>{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
<h2>The lattice</h2>
<ul class="legend">
<li>Every path from ▸ to an end, or with {{ most }} tokens, is a text.</li>
<li>green, bold: the answer</li>
{% if reference %}<li>filled, dashed: the text nearest to the reference</li>{% endif %}
<li>thick frame: texts end here</li>
<li>The thicker a line, the more texts go over it; the stronger, the more probable is the token it leads to.</li>
<li>Point at a token, or step to it with the tab key, for the likeliest text through it.</li></ul>
<p id="told" class="small" aria-live="polite">No token is chosen.</p>
<div class="scroll"><svg width="{{ width }}" height="{{ height }}" viewBox="0 0 {{ width }} {{ height }}" role="group"
aria-label="Graph of tokens, from left to right">
{% for e in edges %}<path id="e{{ e.start }}-{{ e.end }}"{% if e.kind %} class="{{ e.kind }}"{% endif %} d="{{ e.d
}}" stroke-width="{{ e.width }}" opacity="{{ e.opacity }}"><title>{{ e.title }}</title></path>
{% endfor %}{% for n in nodes %}<g id="n{{ loop.index0 }}" tabindex="0"{% if n.kind %} class="{{ n.kind
}}"{% endif %} data-way="{{ n.way }}" data-told="{{ n.told }}"><title>{{ n.told }}</title><rect x="{{ n.x }}" y="{{ n.y
}}" width="{{ n.width }}" height="20" rx="4"/><text x="{{ n.x + 6 }}" y="{{ n.y + 14 }}">{{ n.shown }}</text></g>
{% endfor %}</svg></div>
<h2>Candidates</h2>
<table><caption>Scored anew as whole texts. The lattice's own figure is off where a text came together from several.
</caption><thead><tr><th scope="col">text</th><th scope="col" class="n">score</th><th scope="col" class="n"
>log-probability</th><th scope="col" class="n">as the lattice has it</th></tr></thead>
<tbody>{% for c in candidates %}<tr><td>{{ c.text }}</td><td class="n">{{ "%.3f"|format(c.score) }}</td><td class="n"
>{{ "%.2f"|format(c.logp) }}</td><td class="n">{{ "%.2f"|format(c.stated) }}</td></tr>
{% endfor %}</tbody></table>
{% if reference %}<h2>Reference</h2><pre>{{ reference.text }}</pre>
<p>{% if reference.nearest is none %}The lattice has no text.{% else %}Nearest in the lattice, at an edit distance of
{{ reference.distance }}:{% endif %}</p>
{% if reference.nearest is not none %}<pre>{{ reference.nearest }}</pre>{% endif %}{% endif %}
<p class="small">{{ command }}</p>
<script>
const told = document.getElementById("told");
function mark(g) {
  document.querySelectorAll("svg .on").forEach(e => e.classList.remove("on"));
  told.textContent = g ? g.dataset.told : "No token is chosen.";
  if (!g) return;
  const way = g.dataset.way.split(" ");
  way.forEach((n, i) => {
    document.getElementById("n" + n).classList.add("on");
    if (i) document.getElementById("e" + way[i - 1] + "-" + n).classList.add("on");
  });
}
document.querySelectorAll("svg g").forEach(g => {
  g.addEventListener("mouseenter", () => mark(g));
  g.addEventListener("focus", () => mark(g));
});
</script></body></html>
"""
LETTER, PAD, GAP, ROW = 7.3, 12, 52, 30  # of the drawing, in pixels
LONGEST = 16  # characters of a token that are shown


def page(data: dict[str, Any], command: str) -> str:
    """The HTML of what `bench.lattice.data` gives."""
    count = data["texts"] if data["texts"] is not None else data["paths"]
    title = f"Lattice: {_counted(count, 'text')} on {_counted(data['nodes'], 'node')}"
    settings = ", ".join(f"{name}={value}" for name, value in data["settings"].items())
    facts = [
        ("model", data["model"]),
        ("settings", settings),
        ("texts", "too many to count" if data["texts"] is None else data["texts"]),
        ("paths", data["paths"]),
        ("merges", data["merges"]),
        ("tokens read", f"{data['calls']} in {_counted(data['forwards'], 'forward')}"),
        ("lattice's figures are off by", f"{data['off_mean']:.2f} nats (mean over the answers)"),
    ]
    html: str = (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=title,
            words=_words(data),
            prompt=data["prompt"],
            text=data["text"],
            facts=facts,
            candidates=data["candidates"],
            reference=data["reference"],
            command=command,
            most=data["most"],
            **_drawing(data),
        )
    )
    return html


def _words(data: dict[str, Any]) -> str:
    """What happened, in plain words."""
    return (
        "The search goes on with the most promising of all open texts and finishes it. Where a text comes to the same "
        f"last tokens as an earlier one, the two share what follows. {_counted(data['merges'], 'node')} could be "
        "saved so."
    )


def _drawing(data: dict[str, Any]) -> dict[str, Any]:
    """Where everything is drawn."""
    nodes = data["lattice_nodes"]
    labels = [n["shown"] if len(n["shown"]) <= LONGEST else n["shown"][: LONGEST - 1] + "…" for n in nodes]
    widths = [LETTER * max(len(label), 1) + PAD for label in labels]
    columns = max((n["column"] for n in nodes), default=-1) + 1
    left = [8.0]
    for column in range(columns):
        widest = max(w for n, w in zip(nodes, widths, strict=True) if n["column"] == column)
        left.append(left[-1] + widest + GAP)
    top = min((n["row"] for n in nodes), default=0)
    answer = data["candidates"][0]["nodes"]
    reference = data["reference"]["nodes"] if data["reference"] else []
    kinds = {"best": answer, "ref": reference}
    drawn = []
    for number, (node, label, width) in enumerate(zip(nodes, labels, widths, strict=True)):
        names = [name for name, way in kinds.items() if number in way] + ["ends"] * node["ends"]
        drawn.append(
            {
                "x": round(left[node["column"]], 1),
                "y": round(8 + (node["row"] - top) * ROW, 1),
                "width": round(width, 1),
                "shown": label,
                "kind": " ".join(names),
                "way": " ".join(map(str, node["likeliest"])),
                "told": f"“{node['shown']}”: in {_counted(node['texts'], 'path')}, the likeliest of them "
                f"({node['likeliest_logp']:.2f} nats): {node['likeliest_text']}",
            }
        )
    most = max((edge["texts"] for edge in data["lattice_edges"]), default=1)
    edges = []
    for edge in data["lattice_edges"]:
        start, end = drawn[edge["from"]], drawn[edge["to"]]
        pair = edge["from"], edge["to"]
        names = [name for name, way in kinds.items() if pair in set(itertools.pairwise(way))]
        p = math.exp(edge["logp"])
        edges.append(
            {
                "start": edge["from"],
                "end": edge["to"],
                "kind": " ".join(names),
                "d": _curve(start["x"] + start["width"], start["y"] + 10, end["x"], end["y"] + 10),
                "width": round(1 + 4 * math.log1p(edge["texts"]) / math.log1p(most), 2),
                "opacity": round(0.15 + 0.75 * p, 2),
                "title": f"probability {p:.3f}, {_counted(edge['texts'], 'path')}",
            }
        )
    height = max((n["y"] for n in drawn), default=0) + 36
    return {"nodes": drawn, "edges": edges, "width": round(left[-1], 1), "height": round(height, 1)}


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (to_x - x) / 2
    return f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
