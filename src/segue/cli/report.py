"""A text while it arrives, and one line about what it cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
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


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where that is a terminal: what is being done, how much of it is, of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def show(text: str, done: int, total: int) -> None:
            nonlocal stage
            if text != stage:
                bar.reset(task, total=total)
                stage = text
            bar.update(task, description=text, completed=done, total=total)

        yield show


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def as_json(value: Any) -> str:
    """One line of JSON. Characters stay readable; what UTF-8 cannot hold (half a surrogate pair) becomes an escape."""
    import json

    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
