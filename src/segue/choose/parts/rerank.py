"""The rerank driver: several whole answers are drawn side by side on forks of one prompt, then something picks.

1. Read the prompt once.
2. Let a method of the house (plain sampling unless told otherwise) write `samples` answers on forks of it, sharing
   forwards. A search gives its n-best list instead.
3. Merge equal texts; how often each was drawn is kept.
4. The caller scores them; the best is given out, and all of them are the run's candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from segue.data import Candidate, ConstraintError, FinishReason, Scores, Settings, TokenLogprob
from segue.models.method import Method, sequences_of
from segue.models.run import Decoder, Run, side_by_side
from segue.models.warp import Target

Drafter = Any  # a method that another one holds in a field; the catalog makes it from a name
DUPLICATES = ("count", "merge")


@dataclass(eq=False, slots=True)
class Drawn:
    """One distinct answer among those drawn."""

    tokens: list[int]
    text: str
    words: str  # what scorers read: the text, or the token ids as numbers where the model has no tokenizer
    logp: float  # log-probability under the model itself, before any settings
    reason: FinishReason
    count: int = 1  # how often it was drawn
    score: float = 0.0
    log_target: float = 0.0  # log-probability under the request's own distribution, where that is asked for
    log_proposal: float = 0.0  # and under the one that it was drawn from
    logw: float | None = None
    features: dict[str, float] = field(default_factory=dict)
    details: list[TokenLogprob] | None = None


class Sample(Run):
    """A run within a run, which notes the log-probability of what it gives out. `target` is the distribution of the
    request, where it shall be compared with the one that is drawn from."""

    def __init__(self, parent: Run, settings: Settings, first: Scores, target: Target | None) -> None:
        super().__init__(parent.lm, parent.prompt, settings, source=parent.chance)
        self.first = first
        self.sequence = parent.sequence.fork()
        self.logp = self.log_target = self.log_proposal = 0.0
        self._wanted = target

    def emit(self, tokens: list[int], scores: Scores, nodes: list[int]) -> bool:
        before = len(self.ids)
        goes_on = super().emit(tokens, scores, nodes)
        for place in range(len(self.ids) - before):  # what an end cut off does not count
            row, token, prefix = scores.row(nodes[place]), tokens[place], self.ids[: before + place]
            self.logp += _log_p(row.to(torch.promote_types(row.dtype, torch.float32)), token)
            if self._wanted is not None:
                self.log_target += _log_p(self._wanted.processed(row, prefix), token)
                self.log_proposal += _log_p(self.target.processed(row, prefix), token)
        return goes_on


def _log_p(logits: Tensor, token: int) -> float:
    return float(logits.log_softmax(-1)[token])


def check(samples: int, temperature: float, duplicates: str = DUPLICATES[0]) -> None:
    """ValueError where the fields that rerankers share are not allowed."""
    if samples < 1:
        raise ValueError(f"samples={samples} is not allowed: at least 1")
    if not 1e-4 <= temperature <= 100:
        raise ValueError(
            f"temperature={temperature} is not allowed: from 0.0001 to 100, and greedy answers are all one"
        )
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates={duplicates!r} is not allowed: {' or '.join(DUPLICATES)}")


def sequences(inner: Drafter, samples: int) -> int:
    """Sequences that a run may hold while answers are drawn."""
    return 1 + samples if hasattr(inner, "beams") else 1 + samples * sequences_of(inner)


def draw(
    run: Run,
    inner: Drafter,
    samples: int,
    *,
    temperature: float = 1.0,
    duplicates: str = "count",
    target: Target | None = None,
    proposal: Settings | None = None,
) -> Decoder[list[Drawn]]:
    """Distinct answers in the order in which they were drawn first. A greedy request is sampled at `temperature`;
    `proposal` are other settings to draw with, `target` what its draws are compared with. With duplicates="merge" all
    counts are 1, with "tokens" equal texts of other tokens stay apart. Answers that meet a dead end of the request's
    constraint are left out; ConstraintError where all do."""
    if not isinstance(inner, Method):
        raise ValueError(f"inner={inner!r} is no method: make this one with segue.method(NAME, inner=...), or give one")
    settings, runs = proposal or run.settings, samples
    if hasattr(inner, "beams"):
        inner, runs = replace(inner, beams=samples), 1  # type: ignore[type-var]
    elif settings.temperature == 0:
        settings = replace(settings, temperature=temperature)
    first = yield from run.prefill(getattr(inner, "needs", None))
    subs = [Sample(run, settings, first, target) for _ in range(runs)]
    for sub in subs:
        sub.width, sub.sharing = sequences_of(inner), runs
    failures = yield from side_by_side([_to_its_end(inner.run(sub)) for sub in subs])
    found: list[Drawn] = []
    for sub, failure in zip(subs, failures, strict=True):
        sub.sequence.release()
        _book(run, sub)
        found += _answers(sub) if failure is None else []
    dead = next((failure for failure in failures if failure is not None), None)
    if not found and dead is not None:
        raise dead
    return distinct(found, merge=duplicates == "merge", spelled=duplicates == "tokens")


def _to_its_end(decoder: Decoder[None]) -> Decoder[ConstraintError | None]:
    """What was raised where an answer met a dead end: it is none of the candidates."""
    try:
        yield from decoder
    except ConstraintError as error:
        return error
    return None


def distinct(drawn: Iterable[Drawn], *, merge: bool = False, spelled: bool = False) -> list[Drawn]:
    """Equal texts once, with their counts added up (or, merged, counted once). Of several spellings of a text the
    likeliest stands for it, so that the order in which they came decides nothing; or, `spelled`, each for itself."""
    found: dict[str | tuple[int, ...], Drawn] = {}
    for one in drawn:
        key = tuple(one.tokens) if spelled else one.words
        known = found.get(key)
        if known is None:
            found[key] = one
        elif (one.logp, one.tokens) > (known.logp, known.tokens):
            one.count += known.count
            found[key] = one
        else:
            known.count += one.count
    if merge:
        for one in found.values():
            one.count = 1
    return list(found.values())


def ranked(drawn: Iterable[Drawn]) -> list[Drawn]:
    """Best first; of equal scores the likelier text, so that the order in which they were drawn decides nothing."""
    return sorted(drawn, key=lambda d: (-round(d.score, 9), -d.logp, d.tokens))


def deliver(run: Run, best_first: list[Drawn]) -> None:
    """Give out the first, and all of them as candidates."""
    candidates = [Candidate(d.text, d.tokens, d.logp, d.score, d.reason, d.logw) for d in best_first]
    run.conclude(candidates, best_first[0].details)


def _answers(sub: Sample) -> list[Drawn]:
    """What a run wrote, or all that it chose among."""
    answer = sub.completion()
    if answer.candidates is None:
        one = _drawn(sub, answer.tokens, answer.text, sub.logp, answer.finish_reason)
        one.log_target, one.log_proposal, one.details = sub.log_target, sub.log_proposal, sub.logprobs
        return [one]
    return [_drawn(sub, c.tokens, c.text, c.logp, c.finish_reason) for c in answer.candidates]


def _drawn(run: Run, tokens: list[int], text: str, logp: float, reason: FinishReason) -> Drawn:
    words = text if run.lm.tokenizer is not None else " ".join(map(str, tokens))
    return Drawn(tokens, text, words, logp, reason)


def _book(run: Run, sub: Run) -> None:
    """What a run within a run counted of its own; its forwards are on the outer one already."""
    for name in ("drafted", "accepted", "rounds", "scorer_calls", "constraint_checks"):
        setattr(run.stats, name, getattr(run.stats, name) + getattr(sub.stats, name))
