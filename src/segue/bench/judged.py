"""Methods compared by what their answers are worth: everyone answers every case, then the answers are judged.

1. Per case everyone answers once, in an order that moves on from case to case; the first entrant, the control, always
   leads, since some methods are told its answer. What drafters keep is each entrant's own; grammars are compiled anew.
2. Finished cases are journalled: a killed run goes on where it was.
3. Quality is judged over all of an entrant's cases, costs over those that it and the baseline gave an answer to.
4. Every figure has its 95% interval and that of its difference (of a time: its ratio) to the baseline, by the paired
   bootstrap over cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from segue.api import Model
from segue.bench.bootstrap import draws, interval
from segue.bench.cases import Case
from segue.bench.journal import append, resume
from segue.bench.judge import likelihood
from segue.bench.measures import Measure, Ratio, mean
from segue.data import Completion, ConstraintError
from segue.models.grammar import forget
from segue.models.lm import LM

BASELINE = "plain"
PROBE = 4  # tokens of the answer by which an entrant shows that it takes part at all
Answers = Sequence["Answer"]
Progress = Callable[[int, int], None]  # answers so far, answers in all


@dataclass
class Entrant:
    """A method that takes part."""

    name: str
    method: Any
    settings: Mapping[str, Any] = field(default_factory=dict)  # its own, on top of the contest's
    free: bool = False  # the control, which no constraint holds
    says: str = ""  # what a reader of the table has to know
    stores: dict[str, Any] = field(default_factory=dict)  # what it learned from earlier cases


@dataclass
class Answer:
    """What an entrant gave for a case, and what it cost."""

    text: str = ""
    tokens: int = 0
    finish: str = ""  # stop or length; empty where no answer was given
    texts: list[str] = field(default_factory=list)  # all that it chose among, best first
    logp: float = 0.0  # of the answer under the model itself
    forwards: int = 0  # of the model, the prompt's included
    others: int = 0  # of other models, which draft or judge
    rows: int = 0  # tokens that those read
    checks: int = 0  # of the constraint
    seconds: float = 0.0
    error: str = ""  # why no answer was given
    refused: bool = False  # whether the request itself was refused, rather than no answer found


class Sort(Protocol):
    """A sort of suite: who takes part, what they are told, and how answers are judged."""

    name: str
    source: str  # the model that it is made for
    columns: tuple[tuple[str, str], ...]  # figures of quality, and their heads

    def entrants(self, draft: str | None, source: str) -> list[Entrant]:
        """Everybody who takes part unless the user names others, the control first; the baseline is among them."""
        ...

    def entrant(self, name: str, method: Any) -> Entrant:
        """A method that the user names."""
        ...

    def settings(self, lm: LM) -> dict[str, Any]:
        """What every request is asked with."""
        ...

    def told(self, entrant: Entrant, case: Case, control: Answer | None, model: Model) -> Any | None:
        """The entrant's method with what it is told of a case; None where the case is not for it."""
        ...

    def quality(self, cases: Sequence[Case], answers: Answers) -> dict[str, Measure]:
        """The figures of some answers."""
        ...

    def faults(self, entrant: Entrant, cases: Sequence[Case], answers: Answers) -> dict[str, Any]:
        """What is wrong with an entrant's answers, for its record; "invalid" is a list of what must not be."""
        ...


@dataclass(frozen=True)
class Contest:
    """A contest that is under way."""

    sort: Sort
    cases: Sequence[Case]
    model: Model
    settings: Mapping[str, Any]
    seed: int = 0  # of the first case

    def able(self, entrants: Sequence[Entrant], *, strict: bool) -> tuple[list[Entrant], dict[str, str]]:
        """Those that take such cases at all, and why the others do not; it also warms up. ValueError where the control
        or the baseline does not, or, `strict`, anybody."""
        found, reasons = [], {}
        control = Answer(text="a")  # nobody has said anything yet
        for entrant in entrants:
            own = (c for c in self.cases if self.sort.told(entrant, c, control, self.model) is not None)
            case = next(own, None)
            if case is None:
                reasons[entrant.name] = "none of these cases is for it"
                continue
            answer = self.answer(entrant, case, control, max_tokens=PROBE)
            if answer is not None and answer.refused:
                if strict or entrant.free or entrant.name == BASELINE:
                    raise ValueError(f"{entrant.name} cannot take part: {answer.error}")
                reasons[entrant.name] = answer.error
            else:
                found.append(entrant)
            entrant.stores.clear()
        return found, reasons

    def answer(self, entrant: Entrant, case: Case, control: Answer | None, **more: Any) -> Answer | None:
        """One answer; None where the case is not for the entrant."""
        method = self.sort.told(entrant, case, control, self.model)
        if method is None:
            return None
        lm = self.model.lm
        forget(lm)  # nobody shall profit from masks that another one has made
        lm.stores = entrant.stores
        settings = {**self.settings, **self.sort.settings(lm), **entrant.settings, **more}
        ids = lm.encode(case.read_by(lm))[-lm.longest_prompt(settings["max_tokens"]) :]
        begin = time.perf_counter()
        try:
            own = {} if entrant.free else case.settings()
            out: Completion = self.model.generate(ids, method, **settings, **own)
        except ValueError as error:
            given = Answer(error=str(error), refused=not isinstance(error, ConstraintError))
            given.seconds = time.perf_counter() - begin
            return given
        seconds = time.perf_counter() - begin
        texts = [c.text for c in out.candidates] if out.candidates else [out.text]
        return Answer(
            out.text,
            len(out.tokens),
            out.finish_reason,
            texts,
            likelihood(lm, ids, out.tokens),
            out.stats.target_forwards,
            out.stats.draft_forwards,
            out.stats.rows,
            out.stats.constraint_checks,
            seconds,
        )

    def run(
        self,
        entrants: Sequence[Entrant],
        *,
        journal: Path | None = None,
        setting: dict[str, Any] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> list[list[Answer | None]]:
        """Everybody's answers, [entrant][case]."""
        records = [] if journal is None else resume(journal, setting or {})
        table = [[Answer(**a) if a is not None else None for a in record["answers"]] for record in records]
        total = len(entrants) * len(self.cases)
        for number in range(len(table), len(self.cases)):
            row: list[Answer | None] = [None] * len(entrants)
            others = range(1, len(entrants))
            turn = number % max(len(others), 1)
            for step, at in enumerate([0, *others[turn:], *others[:turn]]):
                row[at] = self.answer(entrants[at], self.cases[number], row[0], seed=self.seed + number)
                progress(number * len(entrants) + step + 1, total)
            table.append(row)
            if journal is not None:
                append(journal, {"case": number, "answers": [a and asdict(a) for a in row]})
        return [list(column) for column in zip(*table, strict=True)]


def summary(contest: Contest, entrants: Sequence[Entrant], answers: list[list[Answer | None]]) -> list[dict[str, Any]]:
    """One record for each entrant; see the module's third and fourth point."""
    base = answers[[e.name for e in entrants].index(BASELINE)]
    found = []
    for entrant, mine in zip(entrants, answers, strict=True):
        at = [i for i, (a, b) in enumerate(zip(mine, base, strict=True)) if a is not None and b is not None]
        cases = [contest.cases[i] for i in at]
        pair = [[a for i in at if (a := side[i]) is not None] for side in (mine, base)]
        figures = _compared(*(contest.sort.quality(cases, side) for side in pair))
        both = [i for i in range(len(at)) if pair[0][i].tokens and pair[1][i].tokens]
        if both:
            figures |= _compared(*(_costs([side[i] for i in both]) for side in pair))
        kinds = {}
        for kind in dict.fromkeys(case.kind for case in cases):
            where = [i for i, case in enumerate(cases) if case.kind == kind]
            measures = contest.sort.quality([cases[i] for i in where], [pair[0][i] for i in where])
            kinds[kind] = {name: float(m(draws(len(where))[:1])[0]) for name, m in measures.items()}
        record = {"name": entrant.name, "says": entrant.says, "cases": len(at), "figures": figures, "by_kind": kinds}
        record["failed"] = [a.error for a in pair[0] if a.refused]
        record["unanswered"] = [a.error for a in pair[0] if a.error and not a.refused]
        found.append(record | contest.sort.faults(entrant, cases, pair[0]))
    return found


def _costs(answers: Answers) -> dict[str, Measure]:
    tokens = [float(a.tokens) for a in answers]
    return {
        "log_p": mean([a.logp for a in answers]),
        "forwards_per_token": Ratio([float(a.forwards) for a in answers], tokens),
        "others_per_token": Ratio([float(a.others) for a in answers], tokens),
        "rows_per_token": Ratio([float(a.rows) for a in answers], tokens),
        "checks_per_token": Ratio([float(a.checks) for a in answers], tokens),
        "seconds": Ratio([a.seconds for a in answers], [1.0] * len(answers)),
    }


def _compared(mine: dict[str, Measure], theirs: dict[str, Measure]) -> dict[str, dict[str, Any]]:
    """Each figure with its interval, and its difference to the baseline's on the same prompts; seconds as a ratio."""
    found: dict[str, dict[str, Any]] = {}
    for name, measure in mine.items():
        prompts = measure.prompts
        weights = draws(prompts)
        own = measure(weights)
        found[name] = {"value": _rounded(interval(own)), "prompts": prompts}
        if name in theirs:
            other = theirs[name](weights)
            found[name]["to_plain"] = _rounded(interval(own / other if name == "seconds" else own - other))
    return found


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
