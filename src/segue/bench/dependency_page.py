"""One self-contained HTML page of a decoding dependency graph: a table of iterations by positions."""

from __future__ import annotations

from typing import Any

import jinja2

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ title }}</title><style>
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#57606a;--line:#d0d7de;--settled:87 96 106;
--early:26 127 55;--wrong:188 76 0}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--soft:#9198a1;--line:#30363d;
--settled:145 152 161;--early:63 185 80;--wrong:219 109 40}}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:var(--ink);
background:var(--paper)}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.1rem;margin-top:1.8rem}.small{color:var(--soft);font-size:.88rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--line);margin:.4rem 0;padding:.2rem .8rem;
font:inherit}
dl{display:flex;flex-wrap:wrap;gap:.3rem 1.6rem;margin:1rem 0}dt{color:var(--soft);font-size:.88rem}
dd{margin:0;font-weight:600}
.scroll{overflow:auto;max-height:85vh;border:1px solid var(--line)}
table{border-collapse:separate;border-spacing:1px;font:13px/1.3 ui-monospace,monospace}caption{text-align:left;
padding:.4rem .6rem;font:16px/1.5 system-ui,sans-serif}
th,td{padding:.25rem .4rem;text-align:left;white-space:pre;font-weight:400;border:2px solid transparent}
th{background:var(--paper);color:var(--soft)}thead th{position:sticky;top:0;z-index:1;vertical-align:bottom}
thead b{display:block;color:var(--ink)}tbody th,thead th:first-child{position:sticky;left:0;z-index:2;
text-align:right}
td{--a:.12}td.settled{background:rgb(var(--settled)/calc(var(--a)*.8))}
td.early{background:rgb(var(--early)/calc(.1 + var(--a)*.6));font-weight:700}
td.wrong{background:rgb(var(--wrong)/calc(var(--a)*.45));font-style:italic;color:var(--soft)}
td.turn{border-color:var(--ink)}
ul.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.4rem 1.4rem}ul.legend td,ul.legend span{
padding:.1rem .4rem}
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ words }}</p>
<h2>Prompt</h2><pre>{{ prompt }}</pre>
<h2>Text</h2><pre>{{ text }}</pre>
<dl>{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
<h2>How to read the table</h2>
<ul class="legend">
<li><b>▲ token</b>: right before its turn, as a guess that is not settled yet (the gain)</li>
<li><i>· token</i>: still wrong</li>
<li>token without a sign: settled</li>
<li>empty: not guessed yet</li>
<li>framed: where plain decoding has its newest token</li>
<li>The stronger the ground, the more probable the model finds the token where it stands.</li></ul>
<div class="scroll"><table><caption>The guess after every iteration</caption>
<thead><tr><th scope="col">iteration</th>{% for token in tokens %}<th scope="col" title="position {{ loop.index0 }}"
>{{ loop.index0 }}<b>{{ token }}</b></th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr><th scope="row">{{ loop.index0 }}</th>{% for cell in row %}
<td{% if cell.classes %} class="{{ cell.classes }}"{% endif %}{% if cell.shade %} style="--a:{{ cell.shade }}"{% endif
%} title="{{ cell.title }}">{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="small">{{ command }}</p></body></html>
"""
SIGNS = {"early": "▲ ", "wrong": "· ", "settled": "", "": ""}
MEANINGS = {"early": "right before its turn", "wrong": "still wrong", "settled": "settled", "": "not guessed yet"}


def page(data: dict[str, Any], command: str) -> str:
    """The HTML of what `dependency.data` gives."""
    count = len(data["tokens"])
    title = f"{_counted(count, 'token')} in {_counted(data['iterations'], 'iteration')}"
    settings = ", ".join(f"{name}={value}" for name, value in data["settings"].items())
    facts = [
        ("model", data["model"]),
        ("settings", settings),
        ("tokens", count),
        ("iterations", f"{data['iterations']} (plain decoding: {data['plain_iterations']})"),
        ("iterations saved", data["saved"]),
        ("positions right before their turn", len(data["early"])),
        ("ended by", data["finish_reason"]),
    ]
    html: str = (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=f"Decoding dependency graph: {title}",
            words=_words(data),
            prompt=data["prompt"],
            text=data["text"],
            facts=facts,
            tokens=data["texts"],
            rows=[_row(number, row) for number, row in enumerate(data["iterates"])],
            command=command,
        )
    )
    return html


def _words(data: dict[str, Any]) -> str:
    """What happened, in plain words."""
    saved = data["saved"]
    gain = f"{_counted(saved, 'iteration')} fewer than" if saved else "as many as"
    return (
        "Iteration 0 reads the prompt, which gives the first token. Every further one scores the whole guess at once, "
        f"settles what is right, and corrects the rest. It took {gain} plain decoding, which gives one token each."
    )


def _row(number: int, row: dict[str, Any]) -> list[dict[str, Any]]:
    cells = []
    for place, (text, p, right) in enumerate(zip(row["texts"], row["p"], row["right"], strict=True)):
        kind = "" if text is None else "settled" if place < row["settled"] else "early" if right else "wrong"
        title = f"iteration {number}, position {place}: "
        title += MEANINGS[kind] if text is None else f"“{text}”, {MEANINGS[kind]}"
        cells.append(
            {
                "classes": f"{kind} turn".strip() if place == number else kind,
                "shade": None if p is None else f"{p:.2f}",
                "title": title + ("" if p is None else f", probability {p:.2f}"),
                "text": "" if text is None else SIGNS[kind] + text,
            }
        )
    return cells


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
