"""Less work: a method that promises the same output must also save forwards, or it is plain decoding in disguise.

Forwards are counted at the models themselves, so that a method's own statistics are checked too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from segue.data import Scores, Settings, Stats
from segue.laws.base import LawBroken, decode
from segue.models.lm import LM, Ask
from segue.models.method import Method


@dataclass(slots=True)
class Count:
    """Forwards of one model."""

    forwards: int = 0


@contextmanager
def counted(lm: LM) -> Iterator[Count]:
    """Counts the forwards of a model within the context."""
    count = Count()
    forward, wrapped = lm.forward, "forward" in vars(lm)

    def counting(asks: Sequence[Ask]) -> list[Scores]:
        count.forwards += 1
        return forward(asks)

    lm.forward = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        if wrapped:
            lm.forward = forward  # type: ignore[method-assign]
        else:
            del lm.forward


def less_work(method: Method, lm: LM, prompt: Sequence[int], tokens: int = 48) -> Stats:
    """On a repetitive prompt the target runs fewer forwards than there are new tokens, and the statistics say the truth
    about how many. Drafters start with nothing learned."""
    settings = Settings(max_tokens=tokens, ignore_eos=True)
    # A request beforehand makes the draft models known, whose forwards are counted too.
    decode(lm, method, [prompt], Settings(max_tokens=2, ignore_eos=True))
    lm.reset_stores()
    with ExitStack() as stack:
        counts = {id(m): stack.enter_context(counted(m)) for m in _distinct([lm, *_drafts(lm)])}
        stats = decode(lm, method, [prompt], settings)[0].stats
    mine = counts[id(lm)].forwards
    everything = sum(count.forwards for count in counts.values())
    drafts = _drafts(lm)
    # A view of the target, or the target itself, may be the draft: then only the sum can be held to the statistics.
    drafting_itself = any(draft is lm for draft in drafts) or (stats.draft_forwards > 0 and everything == mine)
    claimed = stats.target_forwards + stats.draft_forwards
    if everything != claimed or (not drafting_itself and mine != stats.target_forwards):
        raise LawBroken(
            f"{method} on {lm.name} reports {stats.target_forwards} target and {stats.draft_forwards} draft forwards, "
            f"but there were {mine} of the target and {everything - mine} of other models"
        )
    if not stats.tokens_per_forward > 1:
        raise LawBroken(
            f"{method} on {lm.name} took {stats.target_forwards} target forwards for {stats.tokens} tokens of a "
            "repetitive text: it saves no work"
        )
    return stats


def _drafts(lm: LM) -> list[LM]:
    return list(lm.companions.values())


def _distinct(models: Iterable[LM]) -> list[LM]:
    return list({id(m): m for m in models}.values())
