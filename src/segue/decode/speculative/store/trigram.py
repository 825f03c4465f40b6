"""A table of trigrams: for two tokens their likeliest successors in a corpus."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from segue.models.lm import LM

FORMAT = 1
SUCCESSORS = 12  # kept of every pair

Pair = tuple[int, int]


def build(
    documents: Iterable[Sequence[int]],
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    model: str,
    progress: Callable[[int], None] = lambda documents: None,
) -> int:
    """Count the trigrams of token documents and write their table to `path` (.npz), whole or not at all; returns how
    many pairs it has. Raises ValueError where there is no trigram."""
    counts: dict[Pair, Counter[int]] = defaultdict(Counter)
    for number, ids in enumerate(documents, start=1):
        for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
            counts[a, b][c] += 1
        progress(number)
    if not counts:
        raise ValueError("the corpus has no three tokens in a row: give it some text")
    pairs = sorted(counts)
    rows = [counts[pair].most_common(SUCCESSORS) for pair in pairs]
    totals = [sum(counts[pair].values()) for pair in pairs]
    starts = np.cumsum([0, *map(len, rows)])
    meta = {"format": FORMAT, "kind": "trigram", "vocab_size": vocab_size, "model": model}
    target = Path(path)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with staging.open("wb") as file:
            np.savez(
                file,
                meta=np.array(json.dumps(meta)),
                pairs=np.array(pairs, dtype=np.int32),
                starts=starts.astype(np.int64),
                tokens=np.array([token for row in rows for token, _ in row], dtype=np.int32),
                weights=np.array(
                    [count / total for row, total in zip(rows, totals, strict=True) for _, count in row], np.float32
                ),
            )
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    return len(pairs)


def open_table(path: str, lm: LM) -> Mapping[Pair, Mapping[int, float]]:
    """The table in a file. ValueError where there is none, where it is broken or of another vocabulary."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"table={path!r}: no such file; make one with `segue index table`")
    meta, table = _read(path, file.stat().st_mtime_ns)
    if meta["vocab_size"] != lm.vocab_size:
        raise ValueError(
            f"table={path!r} was made for {meta['model']} ({meta['vocab_size']} tokens), and {lm.name} has "
            f"{lm.vocab_size}: make one for it"
        )
    return table


@lru_cache(maxsize=4)
def _read(path: str, _: int) -> tuple[dict[str, int | str], dict[Pair, dict[int, float]]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            pairs, starts, tokens, weights = (data[n].tolist() for n in ("pairs", "starts", "tokens", "weights"))
        if meta["format"] != FORMAT or meta["kind"] != "trigram":
            raise ValueError("another format")
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"table={path!r} is no trigram table ({error}): make it anew") from None
    return meta, {
        (a, b): dict(zip(tokens[start:end], weights[start:end], strict=True))
        for (a, b), start, end in zip(pairs, starts[:-1], starts[1:], strict=True)
    }
