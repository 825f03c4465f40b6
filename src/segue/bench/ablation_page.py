"""The results of an ablation on disk, one line for each arm so that a run goes on where it was, and their tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segue.bench.ablation import GROUPS, Tally, compare, groups

BEGIN, END = "<!-- tables: begin (printed by run.py) -->", "<!-- tables: end -->"


class Results:
    """The arms that were counted, by name, in a JSON file. What was counted under other circumstances (its key is
    another) is counted again."""

    def __init__(self, path: Path, setting: dict[str, Any] | None) -> None:
        """With None, those of the file in whatever setting. ValueError where the file is not one of these, or is of
        another setting."""
        self.path = path
        self.data: dict[str, Any] = {"setting": setting, "looping": [], "arms": {}, "pairs": []}
        if path.exists():
            try:
                known = json.loads(path.read_text())
                same = setting is None or known["setting"] == json.loads(json.dumps(setting))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} holds no results of a study: remove it") from None
            if not same:
                raise ValueError(f"{path} was counted in another setting: remove it, or run with --fresh")
            self.data = known

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.data["arms"]
        return found

    def arm(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """An arm's record, made and written where it is not known, also by another name; one of `make`'s entries is
        "counts"."""
        if self.arms.get(name, {}).get("key") != key:
            twin = next((arm for arm in self.arms.values() if arm["key"] == key), None)
            self.arms[name] = dict(twin) if twin else {"key": key} | make()
            self.write()
        return self.arms[name]

    def judge(self, pairs: Sequence[tuple[str, str, str]]) -> None:
        """Compare arms (one, other, figure), those that are there, and write the outcome."""
        self.data["pairs"] = [
            {"arm": one, "than": other} | compare(self.tally(one), self.tally(other), figure, self.data["looping"])
            for one, other, figure in pairs
            if {one, other} <= self.arms.keys()
        ]
        self.write()

    def tally(self, name: str) -> Tally:
        return Tally(self.arms[name]["counts"])

    def write(self) -> None:
        """The file, replaced in one step; every arm and pair has a line of its own."""
        staging = self.path.with_suffix(".new")
        staging.write_text(_lines(self.data, 2) + "\n")
        staging.replace(self.path)


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON whose first levels have a line for every entry."""
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(deeper + json.dumps(v, ensure_ascii=False) for v in value) + f"\n{indent}]"
    entries = [f"{deeper}{json.dumps(k)}: {_lines(v, depth - 1, deeper)}" for k, v in value.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def arms_table(results: Results, columns: Sequence[str]) -> str:
    """Of every arm the first figure in every group, further figures over all prompts, and how many answers are plain
    decoding's."""
    first, *rest = columns
    chosen = {group: numbers for group, numbers in groups(results.data["looping"]).items() if numbers}
    head = [f"{first}, {group} ({len(numbers)})" for group, numbers in chosen.items()]
    rows = []
    for name, arm in results.arms.items():
        found = results.tally(name)
        cells = [f"{found.figure(first, numbers):.2f}" for numbers in chosen.values()]
        cells += [f"{found.figure(figure):.2f}" for figure in rest]
        rows.append([name, f"`{arm['method']}`", *cells, str(arm["equal"])])
    return table(["arm", "method", *head, *rest, "answers equal"], rows)


def pairs_table(results: Results) -> str:
    """Every comparison with its intervals."""
    rows = []
    for pair in results.data["pairs"]:
        cells = [_interval(pair[group]) if group in pair else "-" for group in GROUPS]
        rows.append([pair["arm"], pair["than"], pair["figure"], *cells, pair["says"]])
    return table(["arm", "than", "figure", *(f"{group}: difference [95%]" for group in GROUPS), "it is"], rows)


def _interval(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def put(readme: Path, text: str) -> None:
    """Replace what stands between the markers of a page; ValueError where it lacks them."""
    page = readme.read_text()
    if BEGIN not in page or END not in page:
        raise ValueError(f"{readme} lacks the markers {BEGIN!r} and {END!r}")
    readme.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n{text}\n{END}{page.split(END)[1]}")
