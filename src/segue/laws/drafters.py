"""Trained drafters for the laws: networks that learned a model's own texts a little, or well."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from segue import catalog
from segue.data import DraftTree, Settings, Want
from segue.laws.base import decode
from segue.laws.worlds import prompts
from segue.models.heads import DraftNetwork, fitted
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM

RATE = 5e-3
_pupils: WeakKeyDictionary[LM, dict[tuple[str, int], DraftNetwork]] = WeakKeyDictionary()


def pupil(lm: LM, cls: type[DraftNetwork], steps: int) -> DraftNetwork:
    """A drafter that had so many steps of training on texts of the model's own; made once."""
    known = _pupils.setdefault(lm, {})
    key = cls.kind, steps
    if key not in known:
        known[key] = fitted(_taught(lm, cls, steps), lm)
    return known[key]


def _taught(lm: LM, cls: type[DraftNetwork], steps: int) -> DraftNetwork:
    network = cls.fresh(lm, seed=3)
    lesson = _lesson(lm, network.reads)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(network.learn(lm, lesson).loss)
        optimiser.step()
    return network


def _lesson(lm: LM, reads: tuple[int, ...]) -> Lesson:
    """The texts that the laws are about, with the model's states."""
    rows: list[tuple[list[int], dict[int, Any]]] = []
    for prompt, text in _own(lm):
        sequence = lm.reading(prompt if lm.start_ids else [])
        ids = [*(lm.start_ids or prompt), *text]
        (scores,) = lm.forward([(sequence, DraftTree.chain(ids), Want(logits="none", hidden=reads))])
        rows.append((ids, {state: hidden.clone().float() for state, hidden in scores.hidden.items()}))
        sequence.release()
    longest = max(len(ids) for ids, _ in rows)
    tokens, own = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.bool)
    states = {state: torch.zeros(len(rows), longest, lm.width) for state in reads}
    for row, (ids, hidden) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        own[row, 1 : len(ids)] = True
        for state in reads:
            states[state][row, : len(ids)] = hidden[state]
    return Lesson(tokens, own, states)


def _own(lm: LM) -> list[tuple[list[int], list[int]]]:
    """The prompts of the model's world with its greedy answers; one goes on from its own answer, as the laws do."""
    settings = Settings(max_tokens=48, ignore_eos=True)
    asked = prompts(lm)
    plain = catalog.build("plain")
    (start,) = decode(lm, plain, asked[:1], Settings(max_tokens=24, ignore_eos=True))
    asked.append([*asked[0], *start.tokens])
    answers = decode(lm, plain, asked, settings)
    return [(prompt, answer.tokens) for prompt, answer in zip(asked, answers, strict=True)]
