"""A text while it arrives, and one line about what it cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.data import Completion, Stats


def stream(pieces: Generator[str, None, Completion], write: Callable[[str], None]) -> Completion:
    """Write the pieces of `Model.stream` as they come; gives the Completion."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            answer: Completion = end.value
            return answer
        write(piece)


def show(piece: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark for the reader, apart from the output."""
    print(text, file=sys.stderr, flush=True)


def statistics(stats: Stats) -> str:
    """What one request cost, e.g. for stderr."""
    acceptance = "" if stats.acceptance is None else f" · acceptance {stats.acceptance:.0%}"
    return (
        f"{stats.method}: {counted(stats.tokens, 'token')} · {stats.seconds:.2f} s · "
        f"{stats.tokens_per_second:.1f} tokens/s · {counted(stats.target_forwards, 'target forward')} · "
        f"{stats.tokens_per_forward:.2f} tokens/forward{acceptance} · "
        f"peak memory {stats.peak_memory_bytes / 2**20:.0f} MiB"
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def as_json(value: Any) -> str:
    """One line of JSON. Characters stay readable; what UTF-8 cannot hold (half a surrogate pair) becomes an escape."""
    import json

    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
