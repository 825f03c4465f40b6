"""What a forward costs: t(k), the seconds of scoring k rows of one sequence, measured once and remembered.

Verification is not free on every machine: on a CPU 8 rows may cost 1.2 times one row, 64 rows four times. Budget
controllers weigh a draft against this curve. It is measured when first asked for, in under three seconds, as the
minimum over alternated repeats, since noise only ever adds; and it is kept in a file per machine, model shape,
precision and thread count, so that decisions taken from it are the same in the next process.
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
import transformers

from segue.data import DraftTree, Want

if TYPE_CHECKING:
    from segue.models.transformers.lm import TransformersLM

ROWS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 2.0  # budget of a measurement; one forward more may run over it
REPEATS = 12  # rounds over ROWS at most
CONTEXT = 256  # committed tokens while measuring
SLOW = 0.1  # seconds of a forward from which on the context stays small: reading it would take the whole budget
FORMAT = 1


@dataclass(frozen=True)
class Cost:
    """t(k) at the measured row counts; in between by straight lines."""

    rows: tuple[int, ...]  # ascending, from 1
    seconds: tuple[float, ...]
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


FLAT = Cost((1,), (1.0,))  # a model whose forwards cost the same whatever they score


def cost_of(lm: TransformersLM, *, refresh: bool = False) -> Cost:
    """The curve of a model: from the cache where it is known, else measured and remembered."""
    facts = _facts(lm)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "cost" / f"{digest}.json"
    known = None if refresh else _read(path)
    if known is not None:
        return replace(known, path=path)
    cost = measure(lm)
    return replace(cost, path=path) if _write(path, cost, facts) else cost


def measure(lm: TransformersLM, seconds: float = SECONDS) -> Cost:
    """Time forwards of 1, 2, 4, ... rows in turn on a sequence of its own. What does not fit the budget is left out."""
    sequence = lm.sequence()
    token = next(i for i in range(lm.vocab_size) if i not in lm.eos_ids)
    want = Want()
    best: dict[int, float] = {}
    try:
        begin = time.perf_counter()
        for _ in range(2):  # the first forward pays for lazy initialisation
            one = _time(lm, sequence, DraftTree.root(token), want)
        length = CONTEXT if one < SLOW else 16
        lm.forward([(sequence, DraftTree.chain([token] * min(length, lm.context_length // 2)), Want(logits="none"))])
        sequence.commit(list(range(len(sequence.scored or ()))))
        sizes = [k for k in ROWS if len(sequence) + k <= lm.context_length]
        trees = {k: _tree(token, k) for k in sizes}
        for _ in range(REPEATS):
            for k in sizes:
                if k in best and time.perf_counter() - begin > seconds:
                    break
                # A first measurement is worth more than a repeat, but a very slow model shows its curve in two points.
                if best and k not in best and time.perf_counter() - begin > seconds and len(best) > 1:
                    break
                best[k] = min(best.get(k, float("inf")), _time(lm, sequence, trees[k], want))
            if time.perf_counter() - begin > seconds:
                break
    finally:
        sequence.release()
    rows = tuple(sorted(best))
    return Cost(rows, tuple(best[k] for k in rows))


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


def _time(lm: TransformersLM, sequence: Any, tree: DraftTree, want: Want) -> float:
    begin = time.perf_counter()
    (scores,) = lm.forward([(sequence, tree, want)])
    scores.argmax()  # a GPU is waited for here
    return time.perf_counter() - begin


def _facts(lm: TransformersLM) -> dict[str, Any]:
    """Everything the curve depends on."""
    config = lm.network.config.to_dict()
    config.pop("_name_or_path", None)
    shape = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:24]
    on_gpu = lm.device.type == "cuda"
    return {
        "format": FORMAT,
        "machine": torch.cuda.get_device_name(lm.device) if on_gpu else f"{processor()}, {os.cpu_count()} cores",
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "spin": os.environ.get("GOMP_SPINCOUNT"),
        "dtype": str(lm.dtype),
        "model": lm.name,
        "shape": shape,
        "weight_bytes": lm.weight_bytes,
        "versions": [torch.__version__, transformers.__version__],
        "linears": sorted({type(m).__name__ for m in lm.network.modules() if "Linear" in type(m).__name__}),
    }


def _read(path: Path) -> Cost | None:
    """A remembered curve; None where there is none or the file is damaged, which a measurement mends."""
    try:
        data = json.loads(path.read_text())
        cost = Cost(tuple(map(int, data["rows"])), tuple(map(float, data["seconds"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = len(cost.rows) == len(cost.seconds) > 0 and list(cost.rows) == sorted(set(cost.rows)) and cost.rows[0] == 1
    return cost if whole and all(0 < s < float("inf") for s in cost.seconds) else None


def _write(path: Path, cost: Cost, facts: dict[str, Any]) -> bool:
    """Remember a curve; False where the cache cannot be written, which costs only another measurement."""
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(json.dumps({"rows": cost.rows, "seconds": cost.seconds, "of": facts}, indent=1) + "\n")
        staging.replace(path)
    except OSError:
        return False
    return True
