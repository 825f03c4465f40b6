"""What answers are judged by: prompts with the references or the constraint that their answers have to meet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.bench.suites import place, records, spread
from segue.data import Settings
from segue.models.constraint import check
from segue.models.lm import LM

JUDGED = ("translation", "constrained")
CONSTRAINTS = ("json_schema", "regex", "grammar", "choices", "passage")


@dataclass(frozen=True)
class Case:
    """One prompt of a judged suite."""

    kind: str
    prompt: str
    document: str = ""  # what an encoder reads instead of the prompt, which is worded for decoders
    references: tuple[str, ...] = ()  # right answers
    constraint: Mapping[str, Any] = field(default_factory=dict)  # one of CONSTRAINTS; a passage: a part of it, verbatim

    def read_by(self, lm: LM) -> str:
        """The prompt as a model gets it."""
        return self.document if lm.start_ids and self.document else self.prompt

    def settings(self) -> dict[str, Any]:
        """The constraint as a setting of the request."""
        passage = self.constraint.get("passage")
        return dict(self.constraint) if passage is None else {"grammar": within(passage)}


@dataclass(frozen=True)
class Cases:
    """A judged suite: `sort` is one of JUDGED and says by what."""

    name: str
    sort: str
    cases: tuple[Case, ...]


def within(passage: str) -> str:
    """A grammar of the parts of a passage: whole words of it, not blank. A constraint over its tokens would also take
    what ends within a character."""
    words = json.dumps({"substring_words": passage})
    return f"start: PART\nPART: WORDS & /(?s:.*)\\S(?s:.*)/\nWORDS: %regex {words}\n"


def judged(name: str) -> bool:
    """Whether a suite, or the user's own file by its first line, is one whose answers are judged."""
    if name in JUDGED:
        return True
    path = Path(name)
    if not path.is_file():
        return False
    try:
        first = next(records(path), (0, {}))[1]
    except ValueError:
        return False  # the line is named by who reads all of them
    return "reference" in first or any(kind in first for kind in CONSTRAINTS)


def cases(name: str, limit: int | None = None) -> Cases:
    """A judged suite by name or path; ValueError names the line that is wrong. `limit` takes evenly spaced ones. Every
    line has a "prompt" (a "document" for encoders is optional), and either a "reference" (of translations) or one of
    CONSTRAINTS, with "references" where right answers are known."""
    path = place(name, JUDGED)
    found = list(_read(path))
    if not found:
        raise ValueError(f"{path} holds no prompts")
    sorts = {"constrained" if case.constraint else "translation": number for number, case in reversed(found)}
    if len(sorts) > 1:
        raise ValueError(
            f"{path} has a reference translation (line {sorts['translation']}) and a constraint (line "
            f"{sorts['constrained']}): a suite is of one sort"
        )
    chosen = spread(len(found), limit)
    return Cases(path.stem, next(iter(sorts)), tuple(found[i][1] for i in chosen))


def _read(path: Path) -> Iterator[tuple[int, Case]]:
    for number, record in records(path):
        where = f"{path} line {number}"
        texts = {name: record.get(name, "") for name in ("prompt", "document", "reference")}
        wrong = next((name for name, text in texts.items() if not isinstance(text, str)), None)
        if wrong is not None or not texts["prompt"]:
            raise ValueError(f'{where} has no "{wrong or "prompt"}" (a text that is not empty)')
        given = {kind: record[kind] for kind in CONSTRAINTS if record.get(kind) is not None}
        if bool(given) == bool(texts["reference"]) or len(given) > 1:
            raise ValueError(
                f"{where} has {' and '.join(given) or 'no constraint'} and {'a' if texts['reference'] else 'no'} "
                f'"reference": give one of {", ".join(CONSTRAINTS)}, or the "reference" of a translation'
            )
        references = record.get("references", [texts["reference"]] if texts["reference"] else [])
        if not isinstance(references, list) or not all(isinstance(r, str) and r for r in references):
            raise ValueError(f'{where}: "references" is not a list of texts')
        _check(given, where)
        kind = str(record.get("kind", next(iter(given), "translation")))
        yield number, Case(kind, texts["prompt"], texts["document"], tuple(references), given)


def _check(given: dict[str, Any], where: str) -> None:
    """ValueError where a constraint cannot be read, by the model's side or by the oracle's."""
    try:
        if "passage" in given:
            if not isinstance(given["passage"], str) or not given["passage"].strip():
                raise ValueError("a passage is a text that is not empty")
            check(Settings(grammar=within(given["passage"])))
        else:
            check(Settings(**given))
        json.dumps(given)
        for pattern in [given["regex"]] if "regex" in given else _patterns(given.get("json_schema")):
            re.compile(pattern)  # the oracle's dialect has to know it as well
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{where}: {error}") from None


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression in a JSON schema."""
    if isinstance(schema, str):
        yield from _patterns(json.loads(schema))
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for key, inner in schema.items():
            if key == "patternProperties" and isinstance(inner, dict):
                yield from inner
            if isinstance(inner, dict | list):
                yield from _patterns(inner)
    elif isinstance(schema, list):
        for inner in schema:
            if isinstance(inner, dict | list):
                yield from _patterns(inner)
