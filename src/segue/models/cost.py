"""What a forward costs: t(k), the seconds of scoring k rows of one sequence, measured once and remembered.

Verification is not free on every machine: on a CPU 8 rows may cost 1.2 times one row, 64 rows four times. Budget
controllers weigh a draft against this curve. It is measured when first asked for, in under three seconds, as the
minimum over alternated repeats, since noise only ever adds; and it is kept in a file per machine, model shape, backend,
precision and thread count, so that decisions taken from it are the same in the next process.

A small model's step is many short operations, and waking a second thread for each costs more than it saves: the curve
is measured with every thread count that is worth it, and for each number of rows the best is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segue.data import DraftTree, Want
from segue.ops.accept import accept_greedy

if TYPE_CHECKING:
    from segue.models.lm import LM
    from segue.models.sequence import Sequence

ROWS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 2.0  # budget of a measurement; one forward more may run over it
REPEATS = 12  # rounds over ROWS at most
CONTEXT = 256  # committed tokens while measuring
SLOW = 0.1  # seconds of a forward from which on the context stays small: reading it would take the whole budget
SHARE = 7  # of the rest of a drafted round, in the time of its tree
TYPICAL = 8  # tokens of a draft
CLEARLY = 0.95  # more threads must bring a forward below this share: fewer leave the machine to others
FORMAT = 8


@dataclass(frozen=True)
class Cost:
    """t(k) at the measured row counts; in between by straight lines."""

    rows: tuple[int, ...]  # ascending, from 1
    seconds: tuple[float, ...]
    overhead: float = 0.0  # seconds that a drafted round takes besides, in our own code
    threads: tuple[int, ...] = ()  # that forwards of so many rows run on; empty where that does not apply
    path: Path | None = field(default=None, compare=False)  # where it is remembered

    def step(self, rows: int) -> float:
        """Seconds of a forward with that many rows."""
        after = next((i for i, r in enumerate(self.rows) if r >= rows), len(self.rows) - 1)
        if after == 0:
            return self.seconds[0]
        before = after - 1
        slope = (self.seconds[after] - self.seconds[before]) / (self.rows[after] - self.rows[before])
        if rows > self.rows[after]:  # the last line goes on, but never downwards: that would be noise
            return self.seconds[after] + max(slope, 0.0) * (rows - self.rows[after])
        return self.seconds[before] + slope * (rows - self.rows[before])

    def threads_for(self, rows: int) -> int:
        """Threads of a forward with that many rows; 0 leaves the process as it is."""
        if not self.threads:
            return 0
        return next((t for r, t in zip(self.rows, self.threads, strict=True) if r >= rows), self.threads[-1])


FLAT = Cost((1,), (1.0,))  # a model whose forwards cost the same whatever they score


def cost_of(lm: LM, *, refresh: bool = False) -> Cost:
    """The curve of a model: from the cache where it is known, else measured and remembered."""
    facts = facts_of(lm)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "cost" / f"{digest}.json"
    known = None if refresh else _read(path)
    if known is not None:
        return replace(known, path=path)
    cost = measure(lm)
    return replace(cost, path=path) if _write(path, cost, facts) else cost


def measure(lm: LM, seconds: float = SECONDS) -> Cost:
    """Time forwards of 1, 2, 4, ... rows in turn on a sequence of its own, with each thread count that the model may
    use. What does not fit the budget is left out."""
    sequence = lm.sequence()
    token = next(i for i in range(lm.vocab_size) if i not in lm.eos_ids)
    before, choices = lm.threads, lm.thread_choices()
    best: dict[tuple[int, int], float] = {}
    try:
        begin = time.perf_counter()
        for _ in range(2):  # the first forward pays for lazy initialisation
            one = _time(lm, sequence, DraftTree.root(token))
        length = CONTEXT if one < SLOW else 16
        lm.forward([(sequence, DraftTree.chain([token] * min(length, lm.context_length // 2)), Want(logits="none"))])
        sequence.commit(list(range(len(sequence.scored or ()))))
        sizes = [k for k in ROWS if len(sequence) + k <= lm.context_length]
        trees = {k: _tree(token, k) for k in sizes}
        for _ in range(REPEATS):
            for k in sizes:
                late = time.perf_counter() - begin > seconds
                # A first measurement is worth more than a repeat, but a very slow model shows its curve in two points.
                if late and ((1, choices[0]) in best) and (k in _rows(best, choices) or len(_rows(best, choices)) > 1):
                    break
                for lm.threads in choices:
                    spent = _time(lm, sequence, trees[k])
                    best[k, lm.threads] = min(best.get((k, lm.threads), float("inf")), spent)
            if time.perf_counter() - begin > seconds:
                break
    finally:
        lm.threads = before
        sequence.release()
    rows = _rows(best, choices)
    threads = []
    for k in rows:
        fewest = choices[0]
        for more in choices[1:]:
            if best[k, more] < CLEARLY * best[k, fewest]:
                fewest = more
        threads.append(fewest)
    curve = [best[k, t] for k, t in zip(rows, threads, strict=True)]
    for i in reversed(range(len(curve) - 1)):  # fewer rows never cost more: that is noise, which would speak for drafts
        curve[i] = min(curve[i], curve[i + 1])
    return Cost(rows, tuple(curve), _overhead(token), tuple(threads) if any(choices) else ())


def _overhead(token: int) -> float:
    """Seconds that our own code takes in a drafted round: what it does with its tree, and SHARE times that for
    estimating its nodes and learning from it (profiled)."""
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        tree = DraftTree.from_paths(token, [[token] * 4, [token + 1] * 3])
        tree.merge(DraftTree.chain([token] * TYPICAL))
        accept_greedy(tree.truncate(TYPICAL).keep({0, 1, 2}), [token] * 3)
        best = min(best, time.perf_counter() - begin)
    return (1 + SHARE) * best


def _rows(best: dict[tuple[int, int], float], choices: tuple[int, ...]) -> tuple[int, ...]:
    """Row counts that were measured with every thread count."""
    return tuple(sorted({k for k, _ in best if all((k, t) in best for t in choices)}))


def cache_folder() -> Path:
    """Where Segue remembers measurements: SEGUE_CACHE, or `segue` in the user's cache folder."""
    own = os.environ.get("SEGUE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _tree(token: int, rows: int) -> DraftTree:
    """Two branches: trees take the masked attention path, which is the dearer one."""
    tree = DraftTree.root(token)
    for node in range(1, rows):
        tree.add(max(node - 2, 0), token)
    return tree


def _time(lm: LM, sequence: Sequence, tree: DraftTree) -> float:
    """Seconds of a round without its drafting: score a tree, accept, commit."""
    mark = sequence.mark()
    begin = time.perf_counter()
    (scores,) = lm.forward([(sequence, tree, Want())])
    path, token = accept_greedy(tree, scores.argmax())  # a GPU is waited for here
    sequence.commit(path, token)
    spent = time.perf_counter() - begin
    sequence.rollback(mark)
    return spent


def facts_of(lm: LM) -> dict[str, Any]:
    """Everything the curve depends on."""
    return {
        "format": FORMAT,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "spin": os.environ.get("GOMP_SPINCOUNT"),
        "model": lm.name,
        "backend": lm.backend,
        "precision": lm.precision,
        "weight_bytes": lm.weight_bytes,
        "versions": [torch.__version__],
        **lm.facts(),
    }


def _read(path: Path) -> Cost | None:
    """A remembered curve; None where there is none or the file is damaged, which a measurement mends."""
    try:
        data = json.loads(path.read_text())
        cost = Cost(
            tuple(map(int, data["rows"])),
            tuple(map(float, data["seconds"])),
            float(data["overhead"]),
            tuple(map(int, data["threads"])),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = (
        len(cost.rows) == len(cost.seconds) > 0
        and len(cost.threads) in (0, len(cost.rows))
        and list(cost.rows) == sorted(set(cost.rows))
        and cost.rows[0] == 1
    )
    return cost if whole and all(0 < s < float("inf") for s in cost.seconds) else None


def _write(path: Path, cost: Cost, facts: dict[str, Any]) -> bool:
    """Remember a curve; False where the cache cannot be written, which costs only another measurement."""
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {name: getattr(cost, name) for name in ("rows", "seconds", "overhead", "threads")} | {"of": facts}
        staging.write_text(json.dumps(record, indent=1) + "\n")
        staging.replace(path)
    except OSError:
        return False
    return True
