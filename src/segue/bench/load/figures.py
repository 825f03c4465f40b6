"""From replies to the figures of a report, and to what is wrong with a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.bench.bootstrap import draws, interval
from segue.bench.load.client import BROKEN, HUNG, Reply

GONE = 499  # as the server counts a client that went away


def percentiles(values: Sequence[float]) -> list[float] | None:
    """The median, the 95th percentile and the largest, in the unit given."""
    if not values:
        return None
    return [round(float(x), 5) for x in (*np.percentile(values, [50, 95]), max(values))]


def speeds(replies: Sequence[Reply], seconds: float) -> dict[str, Any]:
    """How fast answers came. Times to the first token and between pieces are of streams; those of a round of drafting
    arrive together and are one piece."""
    whole = [r for r in replies if r.trouble is None and not r.left]
    gaps = [b - a for r in whole for a, b in zip(r.arrivals, r.arrivals[1:], strict=False)]
    tokens = sum(r.tokens for r in whole)
    return {
        "requests": len(replies),
        "tokens": tokens,
        "seconds": round(seconds, 6),  # a short trial takes milliseconds
        "tokens_per_second": round(tokens / seconds, 1),
        "request_seconds": percentiles([r.seconds for r in whole]),
        "first_token_seconds": percentiles([r.first for r in whole if r.first is not None]),
        "between_pieces_seconds": percentiles(gaps),
    }


def ratio(many: Sequence[dict[str, Any]], one: Sequence[dict[str, Any]]) -> list[float]:
    """Tokens per second with many clients over those with one, of alternations (`speeds` of each): the ratio of all
    tokens in all seconds, with the 95% of a paired bootstrap over alternations."""
    weights = draws(len(many))

    def rate(parts: Sequence[dict[str, Any]]) -> Any:
        tokens, seconds = (np.array([part[name] for part in parts], dtype=float) for name in ("tokens", "seconds"))
        return (weights @ tokens) / (weights @ seconds)

    return [round(x, 3) for x in interval(rate(many) / rate(one))]


def outcomes(replies: Sequence[Reply]) -> dict[str, int]:
    """How many replies came to what: a status, a hung request, a broken connection, a client that left."""
    return dict(sorted(Counter(_outcome(reply) for reply in replies).items()))


def _outcome(reply: Reply) -> str:
    if reply.trouble in (HUNG, BROKEN):
        return reply.trouble
    return str(GONE) if reply.left else str(reply.status)


def compared(replies: Sequence[Reply], error: float) -> dict[str, Any]:
    """Greedy answers against those that are known: how many are equal, how many differ where plain decoding's token led
    by less than `error`, the numeric error of the precision, and which differ otherwise."""
    checked = [r for r in replies if r.question.known is not None and r.status == 200 and r.trouble is None]
    equal, near, different = 0, 0, []
    for reply in checked:
        known = reply.question.known
        assert known is not None
        if (reply.text, reply.tokens) == (known.text, known.tokens):
            equal += 1
            continue
        gap = known.gap(reply.text)
        if gap is not None and gap < error:
            near += 1
        else:
            different.append(
                {"kind": reply.question.kind, "body": reply.question.body, "text": reply.text} | {"gap": gap}
                | {"expected": known.text}
            )  # fmt: skip
    return {"checked": len(checked), "equal": equal, "near_ties": near, "different": different}


def by_kind(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """A record for each kind of request."""
    kinds = dict.fromkeys(sorted(reply.question.kind for reply in replies))
    return [{"kind": kind, **_kind([r for r in replies if r.question.kind == kind])} for kind in kinds]


def _kind(replies: Sequence[Reply]) -> dict[str, Any]:
    whole = [r for r in replies if r.trouble is None and not r.left]
    return {
        "requests": len(replies),
        "tokens": sum(r.tokens for r in whole),
        "outcomes": outcomes(replies),
        "request_seconds": percentiles([r.seconds for r in whole]),
        "first_token_seconds": percentiles([r.first for r in whole if r.first is not None]),
    }


def faults(replies: Sequence[Reply], found: dict[str, Any], end: dict[str, float]) -> list[str]:
    """What is wrong, one line each: nothing is left out, and nothing that was asked for (a client that leaves, a wrong
    request, a deadline) counts."""
    lines = []
    bad = [r for r in replies if r.trouble in (HUNG, BROKEN)]
    lines += [f"{count} requests {what}" for what, count in Counter(f"{r.trouble}: {r.said}" for r in bad).items()]
    strange = [
        f"{r.question.kind} was answered with {r.status}, {r.trouble}: {r.said[:200]}"
        for r in replies
        if r.trouble not in (HUNG, BROKEN) and not r.left and _strange(r)
    ]
    lines += [f"{count} times {line}" for line, count in Counter(strange).items()]
    kinds = Counter(one["kind"] for one in found["different"])
    lines += [f"{count} answers to {kind} are not those of plain decoding" for kind, count in kinds.items()]
    left = [f"{name} {end[name]:.0f}" for name in ("kv_bytes", "running", "queue_length") if end[name]]
    if left:
        lines.append(f"after the load the server still holds {', '.join(left)}")
    return lines


def _strange(reply: Reply) -> bool:
    """Whether a reply is not one of those that its question may have. A stream's trouble comes behind status 200."""
    late = reply.status == 200 and reply.trouble is not None
    return late or reply.status not in reply.question.statuses
