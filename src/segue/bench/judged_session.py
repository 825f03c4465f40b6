"""A whole comparison by quality: who takes part, what is run, and what is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segue.api import Model
from segue.bench.cases import Cases
from segue.bench.constrained_suite import Constrained
from segue.bench.judged import BASELINE, Contest, Entrant, Sort, summary
from segue.bench.session import parse_methods, surroundings, write_json
from segue.bench.translation_suite import Translation
from segue.data import Settings

COSTS = (
    ("log_p", "log p"),
    ("forwards_per_token", "forwards/token"),
    ("others_per_token", "draft and judge forwards/token"),
    ("rows_per_token", "rows/token"),
    ("checks_per_token", "checks/token"),
    ("seconds", "seconds/plain"),
)


def sort_of(cases: Cases) -> Sort:
    """How a suite is judged; ValueError where a judge's package is missing, or cannot read the suite."""
    return Translation() if cases.sort == Translation.name else Constrained(cases.cases)


@dataclass(frozen=True)
class Plan:
    """What is to be compared, checked before a model is loaded."""

    cases: Cases
    sort: Sort
    methods: str | None
    source: str
    draft: str | None
    settings: Settings
    command: str

    def entrants(self) -> list[Entrant]:
        """Those that take part; the user's own beside the control and the baseline."""
        everybody = self.sort.entrants(self.draft, self.source)
        if self.methods is None:
            return everybody
        named = parse_methods(self.methods, self.draft, self.source)
        elsewhere = next((entrant.name for entrant in named if entrant.variant is not None), None)
        if elsewhere is not None:
            raise ValueError(f"{elsewhere}: a suite of answers compares methods on one model; name it with -m")
        always = [entrant for entrant in everybody if entrant.free or entrant.name == BASELINE]
        return always + [self.sort.entrant(e.name, e.method) for e in named if e.name != BASELINE]


def measure(
    plan: Plan, model: Model, *, journal: Path | None = None, progress: Callable[[int, int], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the contest; gives a record for each entrant and the setting."""
    settings = {name: getattr(plan.settings, name) for name in ("max_tokens", "temperature")}
    contest = Contest(plan.sort, plan.cases.cases, model, settings, plan.settings.seed or 0)
    entrants, out = contest.able(plan.entrants(), strict=plan.methods is not None)
    room = model.lm.longest_prompt(plan.settings.max_tokens)
    text = json.dumps([asdict(case) for case in plan.cases.cases], sort_keys=True)
    setting = {
        "suite": plan.cases.name,
        "sort": plan.cases.sort,
        "cases": hashlib.sha256(text.encode()).hexdigest()[:16],
        "prompts": len(plan.cases.cases),
        "prompts_cut": sum(len(model.lm.encode(c.read_by(model.lm))) > room for c in plan.cases.cases),
        "entrants": [entrant.name for entrant in entrants],
        "left_out": out,
        **surroundings(plan.source, model),
        "draft": plan.draft,
        **settings,
        "seed": contest.seed,
        "command": plan.command,
    }
    answers = contest.run(entrants, journal=journal, setting=setting, progress=progress)
    return summary(contest, entrants, answers), setting


def table(sort: Sort, records: list[dict[str, Any]]) -> list[list[str]]:
    """Heads, then a row of cells for each entrant: a figure with what it has over plain and the 95% interval of that;
    columns that are all empty are left out."""
    columns = [(key, head) for key, head in (*sort.columns, *COSTS) if any(_cell(r, key) != "-" for r in records)]
    lines = [["", "cases", *(head for _, head in columns)]]
    for r in records:
        name = f"{r['name']}\n({r['says']})" if r["says"] else r["name"]
        lines.append([name, str(r["cases"]), *(_cell(r, key) for key, _ in columns)])
    return lines


def _cell(record: dict[str, Any], key: str) -> str:
    figure = record["figures"].get(key)
    if figure is None:
        return "-"
    against = figure.get("to_plain")
    if key == "seconds":
        return "{:.2f}\n[{:.2f}, {:.2f}]".format(*against)
    value = f"{figure['value'][0]:.2f}"
    if record["name"] == BASELINE or against is None:
        return "{}\n[{:.2f}, {:.2f}]".format(value, *figure["value"][1:]) if record["name"] == BASELINE else value
    return value if against == [0, 0, 0] else "{}\n{:+.2f} [{:+.2f}, {:+.2f}]".format(value, *against)


def wrong(records: list[dict[str, Any]]) -> list[str]:
    """What must not be, in words: every invalid answer that was given out under a constraint."""
    return [
        f"{r['name']}: {one['why']}: {one['text']!r} ({one['kind']}: {one['prompt']!r})"
        for r in records
        for one in r["invalid"]
    ]


def remarks(records: list[dict[str, Any]], setting: dict[str, Any]) -> list[str]:
    """What a reader of the table must know besides."""
    found = [f"{name} does not take part: {why}" for name, why in setting["left_out"].items()]
    found += [f"{r['name']}: {len(r['failed'])} cases were refused: {r['failed'][0]}" for r in records if r["failed"]]
    if setting["prompts_cut"]:
        found.append(f"{setting['prompts_cut']} prompts were longer than the context allows: their ends were used")
    return found


def write(folder: Path, sort: Sort, records: list[dict[str, Any]], setting: dict[str, Any]) -> None:
    """SUITE.json and SUITE.html."""
    from segue.bench.judged_page import page

    write_json(folder / f"{setting['suite']}.json", {"setting": setting, "records": records})
    notes = [*remarks(records, setting), *wrong(records)]
    (folder / f"{setting['suite']}.html").write_text(page(records, setting, table(sort, records), sort.columns, notes))
