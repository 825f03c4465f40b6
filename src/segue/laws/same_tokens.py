"""SameTokens: greedy output equals the model's own, token for token, alone and in a batch.

A tree's rows equal single-token forwards only up to rounding. A different token is therefore forgiven where the
oracle's own scores of the two are closer than the numeric error, and every forgiven place is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from segue.data import Completion, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.oracle import Answer, Oracle
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method

# Largest difference between logits of a packed tree and of one token at a time.
NUMERIC_ERROR = {"float64": 1e-9, "float32": 1e-4, "f32": 1e-4, "int8": 0.05, "float16": 0.05, "bfloat16": 0.25}
SMALL_BATCH = 24  # rows of a forward in the batch run: prompts are read in chunks beside trees


@dataclass(frozen=True, slots=True)
class NearTie:
    """A place where another token was chosen, whose score is this much below the best."""

    prompt: int
    place: int
    gap: float


@dataclass(slots=True)
class Compared:
    """What was compared: tokens that were equal, and the near-ties that were forgiven."""

    answers: int = 0
    tokens: int = 0
    near_ties: list[NearTie] = field(default_factory=list)

    def __iadd__(self, other: Compared) -> Compared:
        self.answers += other.answers
        self.tokens += other.tokens
        self.near_ties += other.near_ties
        return self


def same_tokens(
    method: Method,
    lm: LM,
    oracle: Oracle,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    batch: bool = True,
    error: float | None = None,
) -> Compared:
    """Every prompt alone, then all of them in one batch, against the oracle. `error`: scores closer than that count as
    equal; by default what the model's precision can tell apart."""
    allowed = error if error is not None else NUMERIC_ERROR[lm.precision]
    report = Compared()
    alone = [decode(lm, method, [prompt], settings)[0] for prompt in prompts]
    rounds = [("alone", alone)]
    if batch:
        rounds.append(("in a batch", decode(lm, method, prompts, settings, engine=Engine(token_budget=SMALL_BATCH))))
    for where, answers in rounds:
        for number, (prompt, found) in enumerate(zip(prompts, answers, strict=True)):
            label = f"{method} on {lm.name}, prompt {number} {where}"
            compare(label, number, found, oracle.answer(prompt, settings), allowed, report)
    return report


def compare(label: str, number: int, found: Completion, expected: Answer, error: float, report: Compared) -> None:
    """Hold one answer to the oracle's, and add what was seen to the report."""
    report.answers += 1
    accepted_at_most = min(found.stats.drafted, len(found.tokens))
    if found.stats.tokens != len(found.tokens) or found.stats.accepted > accepted_at_most:
        raise LawBroken(f"{label}: {found.stats} does not fit {len(found.tokens)} tokens")
    pairs = zip(found.tokens, expected.tokens, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found.tokens), len(expected.tokens)))
    report.tokens += equal
    _compare_logprobs(label, found, expected, equal, error)
    if equal < len(found.tokens) and equal < len(expected.tokens):
        row = expected.scores[equal]
        gap = float(row[expected.tokens[equal]] - row[found.tokens[equal]])
        if not gap < error:
            raise LawBroken(
                f"{label}: token {equal} is {found.tokens[equal]} instead of {expected.tokens[equal]}, whose score is "
                f"{gap:.3g} higher (rounding explains {error}); {found.tokens} instead of {expected.tokens}"
            )
        report.near_ties.append(NearTie(number, equal, gap))
    elif (len(found.tokens), found.finish_reason) != (len(expected.tokens), expected.reason):
        raise LawBroken(
            f"{label}: it ended after {len(found.tokens)} tokens by {found.finish_reason!r} instead of after "
            f"{len(expected.tokens)} by {expected.reason!r}; expected {expected.tokens}"
        )


def _compare_logprobs(label: str, found: Completion, expected: Answer, equal: int, error: float) -> None:
    if found.logprobs is None:
        return
    if [entry.token for entry in found.logprobs] != found.tokens:
        raise LawBroken(f"{label}: its log-probabilities are of other tokens than its output")
    logp = torch.log_softmax(expected.logits.double(), -1)
    for place, entry in enumerate(found.logprobs[:equal]):
        best = logp[place].topk(len(entry.top)).values.tolist()
        pairs = [(entry.logprob, float(logp[place, entry.token]))]
        pairs += [(mine, float(logp[place, token])) for token, mine in entry.top]
        pairs += list(zip((mine for _, mine in entry.top), best, strict=True))
        # Run computes them in float32 at best.
        off = max(abs(mine - own) for mine, own in pairs)
        if not off <= max(error, 1e-5):
            raise LawBroken(f"{label}: a log-probability at token {place} is off by {off:.3g}")
