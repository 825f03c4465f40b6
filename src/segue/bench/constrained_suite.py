"""Constrained answers compared: valid by oracles of their own, right where that is known, and what it costs.

Nothing that is given out under a constraint may be invalid: whatever is makes the command fail, by name. Where a method
finds no valid text within the length limit it gives an error instead of an answer; that, and an answer that the limit
cut, is unfinished, and never counts as valid. Only the control, which no constraint holds, may write what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segue import catalog
from segue.api import Model, method_name
from segue.bench.cases import Case
from segue.bench.judge import fault, need, parser, right
from segue.bench.judged import BASELINE, Answer, Answers, Entrant
from segue.bench.measures import Measure, mean
from segue.models.lm import LM

CONTROL = "plain, unconstrained"
SHOWN = 100  # characters of an invalid answer


class Constrained:
    """See the module."""

    name = "constrained"
    source = "mini"
    columns: tuple[tuple[str, str], ...] = (("valid", "valid %"), ("right", "right %"), ("unfinished", "unfinished %"))

    def __init__(self, cases: Sequence[Case]) -> None:
        """ValueError where a judge's package is missing, or cannot read what `cases` ask for."""
        need("jsonschema", "lark")
        for case in cases:
            if "grammar" in case.constraint:
                parser(case.constraint["grammar"])
        self._faults: dict[tuple[str, str], str | None] = {}

    def entrants(self, draft: str | None, source: str) -> list[Entrant]:
        """Plain with and without the constraint, and every method that runs without a store of its own; those that take
        no constraint refuse the first case."""
        from segue.bench.session import parse_methods

        has_draft = draft is not None or source == "mini"
        names = [n for n, entry in catalog.entries().items() if entry.able(has_draft) and n != BASELINE]
        (plain, *others) = parse_methods(",".join([BASELINE, *names]), draft, source)
        control = Entrant(CONTROL, plain.method, free=True, says="the control")
        return [control, Entrant(BASELINE, plain.method), *(self.entrant(e.name, e.method) for e in others)]

    def entrant(self, name: str, method: Any) -> Entrant:
        says = {
            "exact_extract": "extraction only",
            "sketch_guided": "its black box: the control",
        }
        return Entrant(name, method, says=says.get(method_name(method), ""))

    def settings(self, lm: LM) -> dict[str, Any]:
        return {}

    def told(self, entrant: Entrant, case: Case, control: Answer | None, model: Model) -> Any | None:
        method, kind = entrant.method, method_name(entrant.method)
        if kind == "exact_extract" and not method.passage:
            passage = case.constraint.get("passage")
            return replace(method, passage=passage) if passage is not None else None
        if kind == "sketch_guided" and not (method.url or method.sketch):
            return replace(method, sketch=control.text) if control is not None and control.text.strip() else None
        return method

    def quality(self, cases: Sequence[Case], answers: Answers) -> dict[str, Measure]:
        pairs = list(zip(cases, answers, strict=True))
        valid = [self._valid(case, answer) for case, answer in pairs]
        found: dict[str, Measure] = {"valid": mean([float(v) for v in valid], 100.0)}
        known = [float(v and right(c, a.text)) for (c, a), v in zip(pairs, valid, strict=True) if c.references]
        if known:
            found["right"] = mean(known, 100.0)
        found["unfinished"] = mean([float(not a.refused and a.finish != "stop") for a in answers], 100.0)
        return found

    def faults(self, entrant: Entrant, cases: Sequence[Case], answers: Answers) -> dict[str, Any]:
        invalid = []
        for case, answer in zip(cases, answers, strict=True):
            why = None if entrant.free or not answer.finish else self._fault(case, answer.text)
            if why is not None:
                shown = answer.text[:SHOWN]
                invalid.append({"kind": case.kind, "prompt": case.prompt[:SHOWN], "text": shown, "why": why})
        return {"invalid": invalid}

    def _valid(self, case: Case, answer: Answer) -> bool:
        return answer.finish == "stop" and self._fault(case, answer.text) is None

    def _fault(self, case: Case, text: str) -> str | None:
        key = case.prompt, text
        if key not in self._faults:
            self._faults[key] = fault(case, text)
        return self._faults[key]
