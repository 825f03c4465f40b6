"""The target of MBR with a judge: of the drawn texts the one with the best mean expected grade, every grade read off a
full forward of the judge over one whole pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from segue.choose.parts.judge import Judge
from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.drawing import Text, answers, best, candidates_hold, edges_hold, samples_hold
from segue.laws.oracle import TableOracle
from segue.laws.worlds import World, neighbour, oracle_of
from segue.models.lm import LM
from segue.models.toy import ToyLM

CLOSE = 1e-3


def hold(method: Any, world: World) -> dict[str, float]:
    """The law of the answer on a table; every candidate's grade on a network. Raises LawBroken."""
    toy = isinstance(world.oracle, TableOracle)
    words: dict[str, Any] = {
        "task": (0,),
        "reference": (1,),
        "answer": (0,),
        "question": (1,),
        "grades": ((0,), (1,)),
    }
    if not toy:
        words = {"task": (3, 4), "reference": (5,), "answer": (6, 7), "question": (8,), "grades": ((9,), (10,), (11,))}
    # A table that looks back far enough tells references apart.
    own = ToyLM(world.lm.vocab_size, 5, seed=5) if toy else None
    forms = [
        replace(method, samples=3, judge=Judge(own, **words)),
        replace(method, samples=3, judge=Judge(neighbour(world.lm), **words), against="nothing"),
    ]
    if toy:
        graded = {form.judge: _grader(form, world, world.prompts[-1]) for form in forms}
        return {"total variation": max(samples_hold(form, world, _picker(form, graded[form.judge])) for form in forms)}
    compared = edges_hold(forms[0], world)
    for form in (replace(forms[0], samples=4), forms[1]):
        for prompt, answer in answers(form, world, Settings(max_tokens=6, temperature=1.0, seed=3)):
            found = candidates_hold(form, world, prompt, answer)
            counts = answer.trace[0]["counts"]
            draws = [tuple(c.tokens) for c, n in zip(found, counts, strict=True) for _ in range(n)]
            scores = _scores(form, draws, _grader(form, world, prompt))
            for candidate in found:
                score = scores[draws.index(tuple(candidate.tokens))]
                if abs(score - candidate.score) > CLOSE:
                    raise LawBroken(f"{form}: {candidate} is graded {score:.6g}")
            if max(scores) > found[0].score + CLOSE:
                raise LawBroken(f"{form}: {found[0]} is not the best of {scores}")
            compared += sum(len(c.tokens) for c in found)
    return {"tokens": compared}


def _grader(method: Any, world: World, prompt: list[int]) -> Callable[[Text, Text], float]:
    """Expected grade of an answer beside a reference."""
    judge = method.judge
    lm: LM = judge.lm or world.lm
    rows: Any = lm.logits_after if isinstance(world.oracle, TableOracle) else None  # type: ignore[attr-defined]
    if rows is None:
        oracle = oracle_of(lm)
        rows = lambda text: oracle.logits_after(text, ())  # noqa: E731
    known: dict[tuple[Text, Text], float] = {}

    def grade(answer: Text, reference: Text) -> float:
        beside = [*judge.reference, *reference] if method.against == "samples" else []
        key = answer, tuple(beside)
        if key not in known:
            row = rows([*judge.task, *prompt, *beside, *judge.answer, *answer, *judge.question]).double()
            p = torch.softmax(torch.stack([row[token] for (token,) in judge.grades]), 0).tolist()
            known[key] = sum((i + 1) * share for i, share in enumerate(p))
        return known[key]

    return grade


def _scores(method: Any, texts: list[Text], grade: Callable[[Text, Text], float]) -> list[float]:
    if len(set(texts)) == 1:
        return [0.0] * len(texts)
    found = []
    for i, mine in enumerate(texts):
        others = [text for j, text in enumerate(texts) if j != i] if method.against == "samples" else [mine]
        found.append(sum(grade(mine, other) for other in others) / len(others))
    return found


def _picker(
    method: Any, grade: Callable[[Text, Text], float]
) -> Callable[[list[Text], Callable[[Text], float]], dict[Text, float]]:
    def pick(texts: list[Text], logp: Callable[[Text], float]) -> dict[Text, float]:
        return {best(texts, _scores(method, texts, grade), logp): 1.0}

    return pick
