"""`python -m segue.docs --write | --check`: the README's method table and docs/methods/, printed from the cards.

Generated text lives between markers; nobody edits by hand what code can print. Run in a checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from segue import catalog
from segue.card import Exactness, Limit
from segue.catalog import Entry

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- methods: begin (python -m segue.docs --write) -->", "<!-- methods: end -->"


def main(arguments: list[str]) -> int:
    if arguments not in (["--write"], ["--check"]):
        print("usage: python -m segue.docs --write | --check", file=sys.stderr)
        return 2
    pages = generated()
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    orphans = [p for p in (ROOT / "docs" / "methods").rglob("*.md") if p not in pages]
    if arguments == ["--check"]:
        for path in [*stale, *orphans]:
            print(f"{path.relative_to(ROOT)} is not what the cards say: run python -m segue.docs --write")
        return 1 if stale or orphans else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages[path])
    for path in orphans:
        path.unlink()
    print(f"{len(stale)} pages written, {len(orphans)} removed")
    return 0


def generated() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the markers {BEGIN!r} and {END!r}")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    pages = {readme: f"{head}{BEGIN}\n{table()}{END}{tail}"}
    for entry in catalog.entries().values():
        pages[ROOT / "docs" / "methods" / entry.family / f"{entry.name}.md"] = page(entry)
    return pages


def table() -> str:
    """Method, paper, promise, the paper's claim and ours."""
    lines = ["| method | paper | exact | claim | ours | needs |", "|---|---|---|---|---|---|"]
    for entry in catalog.entries().values():
        card = entry.card
        link = f"[{entry.name}](docs/methods/{entry.family}/{entry.name}.md)"
        paper = f"{card.paper.title} ({card.paper.year})" if card.paper.id else card.paper.title
        exact = ", ".join(_exact(e) for e in card.exact)
        cells = [link, paper, exact, _claim(entry), measured(entry), ", ".join(card.needs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured(entry: Entry) -> str:
    """Our figure for a method in a few words; says when it is stale or absent."""
    result = entry.result()
    if result is None:
        return "not measured"
    words = f"{result['ratio'][0]:.2f}x transformers greedy"
    if "tokens_per_forward" in result:
        words += f", {result['tokens_per_forward']:.2f} tokens/forward"
    return words + (" (stale)" if result["stale"] else "")


def page(entry: Entry) -> str:
    """The page of one method."""
    card = entry.card
    lines = [f"# {entry.name}", "", f"*{entry.family}* · {entry.summary}", "", entry.doc, ""]
    source = f" ({card.paper.id}, {card.paper.year})" if card.paper.id else ""
    facts = {
        "Paper": f"{card.paper.title}{source}",
        "Claim": _claim(entry),
        "Exactness": ", ".join(_exact(e) for e in card.exact),
        "Trains": card.trains,
        "Needs": ", ".join(card.needs),
        "Departs": card.departs or "nothing",
        "Measured": measured(entry),
    }
    lines += [f"- **{name}**: {value}" for name, value in facts.items()]
    if entry.fields:
        lines += ["", "| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{f.name}` | `{_cell(f.type)}` | `{f.default}` | {_cell(f.comment)} |" for f in entry.fields]
    result = entry.result()
    if result is not None:
        lines += ["", "## Measured result", "", *_result(result)]
    return "\n".join(lines) + "\n"


def _result(result: dict[str, Any]) -> list[str]:
    setting = result.get("setting", {})
    versions = ", ".join(f"{k} {v}" for k, v in setting.get("versions", {}).items())
    median, least, most = result["ratio"]
    lines = [
        f"- speed against transformers greedy: {median:.2f} (95%: {least:.2f} to {most:.2f})",
        f"- prompts: {result['prompts']}, of which {result['looping']} gave looping text",
        f"- same tokens as transformers greedy: {result['equal']} of {result['prompts']} ({setting.get('dtype')})",
    ]
    if result.get("ratio_not_looping"):
        lines.append(f"- without the looping ones: {result['ratio_not_looping'][0]:.2f}")
    if "tokens_per_forward" in result:
        lines.append(f"- tokens per target forward: {result['tokens_per_forward']:.2f}")
    if result.get("acceptance") is not None:
        lines.append(f"- accepted share of proposed tokens: {result['acceptance']:.3f}")
    lines.append(f"- machine: {setting.get('machine')}, {setting.get('threads')} threads; {versions}")
    lines.append(f"- command: `{setting.get('command')}` at commit {setting.get('commit')}")
    return lines


def _exact(exact: Exactness) -> str:
    name = type(exact).__name__
    return f"{name}({exact.knob}={exact.exact_at:g})" if isinstance(exact, Limit) else name


def _claim(entry: Entry) -> str:
    return str(entry.card.claim or "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
