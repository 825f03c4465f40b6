"""What target and draft cost while they take turns, as in a round of draft and verify.

A model that is timed alone finds its weights in the processor's caches; between two of a draft's rounds the target's
weights pass through them. Where the draft fits a cache that the target does not, its first step of a round is dearer
than alone. Here both are timed in the order of real rounds,
and lower quartiles of the same seconds are compared: a burst of another program's work falls on less than all turns,
and the least of all would be a step that found its weights by chance.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from statistics import quantiles

from segue.data import DraftTree, Want
from segue.models.cost import Cost
from segue.models.lm import LM
from segue.models.sequence import Sequence
from segue.ops.accept import accept_greedy

SECONDS = 4.0  # budget; the turn that is under way is finished
TURNS = 40  # at most
LEAST = 3  # at least
FIRST, NEXT = 0, -1  # steps of a draft behind the target, behind another step
PLAIN = 3  # steps of plain decoding in a turn; the first still finds the draft's weights in the caches


def together(
    target: LM, draft: LM, ids: list[int], most: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Cost, Cost]:
    """The curves of target and draft, behind a text `ids`, in rounds of up to `most` drafted tokens. Row counts that
    no round reaches are scaled like the largest that was measured. What the first step of a draft takes more than the
    next ones falls once a round, and is in the overhead of the target's curve."""
    # Every row count of the curve up to the first that holds the largest round.
    most_rows = next((k for k in target.cost.rows if k > most), target.cost.rows[-1])
    sizes = [k for k in target.cost.rows if 1 < k <= most_rows]
    ids = ids[: min(target.context_length, draft.context_length) - most_rows - 1]
    if not sizes or not ids:
        raise ValueError(f"{target.name} and {draft.name} have no room for a round of {most} drafted tokens")
    spent: dict[int, list[float]] = defaultdict(list)  # of the target, by rows; and of the draft
    texts = [_reads(target, ids), _reads(draft, ids)]
    token = ids[-1]
    try:
        begin = time.perf_counter()
        for turn in range(TURNS):
            progress(turn, TURNS)
            if turn >= LEAST and time.perf_counter() - begin > SECONDS:
                break
            plain = [_time(texts[0], token, 1) for _ in range(PLAIN)]
            spent[1] += plain[1:]
            for rows in sizes:
                first, *more = [_time(texts[1], token, 1) for _ in range(rows - 1)]
                spent[FIRST].append(first)
                spent[NEXT] += more
                spent[rows].append(_time(texts[0], token, rows))
        progress(TURNS, TURNS)
    finally:
        for text in texts:
            text.release()
    found = {rows: quantiles(times, n=4)[0] for rows, times in spent.items() if times}
    step = found.get(NEXT, found[FIRST])  # rounds of one token have no next step
    change = max(found[FIRST] - step, 0.0)
    verify = _scaled(target.cost, found)
    return replace(verify, overhead=verify.overhead + change), _scaled(draft.cost, {1: step})


def _scaled(cost: Cost, found: dict[int, float]) -> Cost:
    factor, seconds = 1.0, []
    for rows, alone in zip(cost.rows, cost.seconds, strict=True):
        factor = found[rows] / alone if rows in found else factor
        seconds.append(factor * alone)
    return replace(cost, seconds=tuple(seconds))


def _reads(lm: LM, ids: list[int]) -> Sequence:
    sequence = lm.sequence()
    for at in range(0, len(ids), 64):
        chunk = ids[at : at + 64]
        lm.forward([(sequence, DraftTree.chain(chunk), Want(logits="none"))])
        sequence.commit(list(range(len(chunk))))
    return sequence


def _time(sequence: Sequence, token: int, rows: int) -> float:
    """Seconds of scoring a chain, accepting and committing; the sequence is then as before."""
    mark = sequence.mark()
    tree = DraftTree.chain([token] * rows)
    begin = time.perf_counter()
    (scores,) = sequence.lm.forward([(sequence, tree, Want())])
    path, after = accept_greedy(tree, scores.argmax())
    sequence.commit(path, after)
    spent = time.perf_counter() - begin
    sequence.rollback(mark)
    return spent
