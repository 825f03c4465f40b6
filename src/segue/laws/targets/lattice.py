"""The target of lattices: the published search, written as plain loops; without merging and with room for everything,
the best of all texts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from segue.data import Candidate, Completion, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.lattice import LogP, Naive, Text, greedy_text, listed, logp_of
from segue.laws.oracle import TableOracle, endings, room
from segue.laws.worlds import World
from segue.models.run import Run

TOKENS = 8
CLOSE = 1e-3  # of log-probabilities of a whole text
FORMS: tuple[dict[str, Any], ...] = (
    {"merge": "none", "calls": 30, "length_penalty": 0.0},
    {"merge": "rcb", "calls": 40, "ngram": 2, "lanes": 1},
    {"merge": "zip", "calls": 40, "ngram": 2, "gap": 3, "k": 3},
    {"merge": "zip", "calls": 60, "ngram": 3, "k": 4, "lanes": 8},
    {"merge": "zip", "calls": 40, "ngram": 1, "gap": 2, "k": 3, "lanes": 1},
)


def hold(method: Any, world: World) -> dict[str, float]:
    """The whole lattice and the candidates, against the naive search; the number of texts, against their list; greedy
    texts and edges. Raises LawBroken."""
    table = isinstance(world.oracle, TableOracle)
    found = {"texts": 0.0, "tokens": 0.0, "merges": 0.0}
    for prompt in world.prompts[1:3]:
        free = world.oracle.answer(prompt, Settings(max_tokens=TOKENS)).tokens
        log_p = reader(world, prompt, Settings(max_tokens=TOKENS))
        for form in FORMS:
            for eos in (world.lm.eos_ids, frozenset([free[1], free[-1]])):
                with ending_at(world.lm, eos):
                    for name, count in _compare(replace(method, **form), world, prompt, log_p).items():
                        found[name] += count
    if not found["merges"]:
        raise LawBroken(f"{method}: no two texts merged, so nothing was put to the test")
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        with ending_at(world.lm, edge.eos):
            found["tokens"] += _at_edge(replace(method, calls=24), world, edge.prompt, edge.settings)
    if table:
        found["texts"] += sum(_optimum(method, world, n) for n in (1, 3, 4))
    return found


def reader(world: World, prompt: list[int], settings: Settings) -> LogP:
    """Rows of log-probabilities by full forwards, the request's settings included."""
    run = Run(world.lm, prompt, settings)
    known: dict[Text, Any] = {}

    def log_p(output: Text) -> Any:
        if output not in known:
            row = world.oracle.logits_after(prompt, output).float().log_softmax(-1)
            known[output] = run.target.processed(row, [*run.ids, *output]).numpy()
        return known[output]

    return log_p


def _compare(method: Any, world: World, prompt: list[int], log_p: LogP) -> dict[str, int]:
    settings = Settings(max_tokens=TOKENS)
    (alone,) = decode(world.lm, method, [prompt], settings)
    others = world.prompts if method.merge == "zip" and method.lanes > 1 else []
    naive = Naive(method, log_p, endings(world.lm, settings), room(world.lm, prompt, settings))
    naive.search()
    expected = sorted(naive.paths())
    candidates = naive.answers(expected)
    for answer in (alone, *(decode(world.lm, method, [prompt, *others], settings)[:1] if others else ())):
        told = answer.trace[0]
        found = sorted(listed(told["lattice"], told["most"]))
        same = [text for text, _ in found] == [text for text, _ in expected]
        if not same or any(abs(a - b) > CLOSE for (_, a), (_, b) in zip(found, expected, strict=True)):
            raise LawBroken(f"{method} on {prompt}: the texts {found} where the naive search has {expected}")
        counts = {"paths": len(expected), "texts": len({text for text, _ in expected}), "merges": naive.merges}
        if any(told[name] != count for name, count in counts.items()):
            raise LawBroken(f"{method} on {prompt}: {[told[name] for name in counts]} where there are {counts}")
        if not _alike(answer.candidates or [], candidates):
            raise LawBroken(f"{method} on {prompt}: {answer.candidates} where the naive search gives {candidates}")
    tokens = sum(len(c.tokens) for c in alone.candidates or [])
    return {"texts": counts["texts"], "tokens": tokens, "merges": naive.merges}


def _alike(found: list[Candidate], expected: list[tuple[Text, float]]) -> bool:
    """Whether these are the expected texts with their scores; nearly level ones may stand in either order."""
    scores = dict(expected)
    if len(found) != len(expected) or {tuple(c.tokens) for c in found} != scores.keys():
        return False
    ordered = all(a.score >= b.score for a, b in itertools.pairwise(found))
    return ordered and all(abs(c.score - scores[tuple(c.tokens)]) < CLOSE for c in found)


def _at_edge(method: Any, world: World, prompt: list[int], settings: Settings) -> int:
    """The answer is no worse than the greedy one; every candidate is a whole text, scored as the model scores it."""
    (answer,) = decode(world.lm, method, [prompt], settings)
    log_p = reader(world, prompt, settings)
    ends, limit = endings(world.lm, settings), room(world.lm, prompt, settings)
    greedy = tuple(world.oracle.answer(prompt, settings).tokens)
    if settings.repetition_penalty != 1:  # of log-probabilities it chooses otherwise than of logits
        greedy = greedy_text(log_p, ends, limit)

    def worth(text: Text) -> float:
        return float(logp_of(log_p, text) / len(text) ** method.length_penalty)

    if worth(tuple(answer.tokens)) < worth(greedy) - CLOSE:
        raise LawBroken(f"{method} on {prompt} with {settings}: {answer.tokens} is worth less than {greedy}")
    for candidate in _whole(answer):
        text = tuple(candidate.tokens)
        over = text[-1] in ends or len(text) == limit or _complete(settings, text)
        if not over or any(token in ends for token in text[:-1]):
            raise LawBroken(f"{method} on {prompt} with {settings}: {text} is no whole text")
        if abs(candidate.score - worth(text)) > CLOSE:
            raise LawBroken(f"{method} on {prompt} with {settings}: {candidate} is worth {worth(text)}")
    return sum(len(c.tokens) for c in answer.candidates or [])


def _whole(answer: Completion) -> list[Candidate]:
    if not answer.candidates or answer.candidates[0].tokens != answer.tokens:
        raise LawBroken(f"{answer.tokens} is not the first of {answer.candidates}")
    return answer.candidates


def _complete(settings: Settings, text: Text) -> bool:
    """Whether a constraint without end tokens is satisfied."""
    state: Any = None if settings.constraint is None else settings.constraint.start()
    for token in text:
        state = None if state is None or settings.constraint is None else settings.constraint.step(state, token)
    return state is not None and settings.constraint is not None and settings.constraint.accepting(state)


def _optimum(method: Any, world: World, tokens: int) -> int:
    """Without merging and with room for all texts, the candidates are the best of all texts."""
    assert isinstance(world.oracle, TableOracle)
    prompt, size = world.prompts[-1], world.lm.vocab_size
    everything = replace(method, merge="none", k=size, calls=(size + 1) ** tokens)
    (answer,) = decode(world.lm, everything, [prompt], Settings(max_tokens=tokens))
    law = world.oracle.law(prompt, Settings(max_tokens=tokens, temperature=1.0))
    worth = sorted((math.log(p) / len(text) ** method.length_penalty for text, p in law.items()), reverse=True)
    found = [candidate.score for candidate in _whole(answer)]
    if answer.trace[0]["texts"] != len(law) or not np.allclose(found, worth[: method.results], atol=CLOSE):
        raise LawBroken(f"{everything}: {answer.candidates} are not the best of {len(law)} texts: {worth}")
    return len(law)
