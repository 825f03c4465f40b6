"""Translations compared: corpus BLEU and chrF, what the n-best list holds, and what it costs.

Dynamic beam allocation is told one or two phrases of the reference, as in its paper's experiments (arXiv:1804.06609,
section 4): an oracle, not a fair entrant, and labelled so. How many of the phrases the others have by themselves stands
beside it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segue import catalog
from segue.api import Model, method_name
from segue.bench.cases import Case
from segue.bench.judge import need
from segue.bench.judged import BASELINE, Answer, Answers, Entrant
from segue.bench.measures import Corpus, Measure, Ratio, distinct, mean, oracle
from segue.models.lm import LM

LONG = 8  # words of a reference that gives a second phrase


class Translation:
    """See the module."""

    name = "translation"
    source = "mt-mini"
    columns: tuple[tuple[str, str], ...] = (
        ("bleu", "BLEU"),
        ("chrf", "chrF"),
        ("oracle_bleu", "oracle BLEU"),
        ("distinct_2", "distinct 2-grams"),
        ("answers", "n-best"),
        ("placed", "phrases placed %"),
        ("unfinished", "unfinished %"),
    )

    def __init__(self) -> None:
        need("sacrebleu.metrics")

    def entrants(self, draft: str | None, source: str) -> list[Entrant]:
        """Plain and sampling, and every method whose card names this suite, each search as wide as its field says."""
        from segue.bench.session import parse_methods

        names = [name for name, entry in catalog.entries().items() if entry.card.check == self.name]
        wide = [f"{name}:beams=8" for name in names if name == "beam"]
        (plain, *others) = parse_methods(",".join([BASELINE, *names, *wide]), draft, source)
        sampling = Entrant("sampling", plain.method, {"temperature": 1.0}, says="plain at temperature 1")
        return [Entrant(BASELINE, plain.method), sampling, *(self.entrant(e.name, e.method) for e in others)]

    def entrant(self, name: str, method: Any) -> Entrant:
        kind = method_name(method)
        says = {
            "dynamic_beam_allocation": "oracle: told phrases of the reference",
            "mbr_judge": "the judge of an encoder-decoder is mini",
        }
        return Entrant(name, method, says=says.get(kind, ""))

    def settings(self, lm: LM) -> dict[str, Any]:
        return {} if lm.start_ids else {"stop": ("\n",)}  # decoders go on with the next line

    def told(self, entrant: Entrant, case: Case, control: Answer | None, model: Model) -> Any | None:
        method, kind = entrant.method, method_name(entrant.method)
        if kind == "dynamic_beam_allocation" and not method.phrases:
            wanted = phrases(case.references[0])
            return replace(method, phrases="|".join(wanted)) if wanted else None
        if kind == "mbr_judge" and method.judge is None and model.lm.start_ids:
            return replace(method, judge="mini")  # a translator cannot grade
        return method

    def quality(self, cases: Sequence[Case], answers: Answers) -> dict[str, Measure]:
        references = [case.references[0] for case in cases]
        texts = [answer.text for answer in answers]
        found: dict[str, Measure] = {m: Corpus(m, texts, references) for m in ("bleu", "chrf")}
        # Where nothing was found the empty text stands, in the list as well.
        lists = [answer.texts or [""] for answer in answers]
        found["oracle_bleu"] = Corpus("bleu", oracle(lists, references), references)
        grams = [distinct(texts) for texts in lists]
        found["distinct_2"] = Ratio([float(g) for g, _ in grams], [float(w) for _, w in grams])
        found["answers"] = mean([float(len(set(texts))) for texts in lists])
        asked = [phrases(reference) for reference in references]
        placed = [float(sum(has(text, p) for p in own)) for text, own in zip(texts, asked, strict=True)]
        found["placed"] = Ratio(placed, [float(len(own)) for own in asked], 100.0)
        found["unfinished"] = mean([float(a.finish != "stop") for a in answers], 100.0)
        return found

    def faults(self, entrant: Entrant, cases: Sequence[Case], answers: Answers) -> dict[str, Any]:
        return {"invalid": []}  # a translation is better or worse


def phrases(reference: str) -> list[str]:
    """One or two phrases of a reference that a translator may have been told to use: its longest word behind the first,
    and, where it has LONG words, the longest two words that stand behind one another elsewhere."""
    words = reference.split()
    bare = [word.strip(string.punctuation + "„“”‚‘’»«…–") for word in words]
    if len(words) < 2:
        return []
    first = max(range(1, len(words)), key=lambda i: len(bare[i]))
    pairs = [
        i
        for i in range(1, len(words) - 1)
        if first not in (i, i + 1) and words[i] == bare[i] and words[i + 1].startswith(bare[i + 1]) and bare[i + 1]
    ]
    found = [bare[first]] if bare[first] else []
    if len(words) >= LONG and pairs:
        at = max(pairs, key=lambda i: len(bare[i]) + len(bare[i + 1]))
        found.append(f"{bare[at]} {bare[at + 1]}")
    return found


def has(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text, at the beginning of a word."""
    return f" {phrase}" in f" {text}"
