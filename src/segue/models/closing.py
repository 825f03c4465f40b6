"""How a text under a grammar can be brought to its end: so that a string or a list that could go on for ever is closed
before the tokens run out.

Grammars do not say how far it is to the end. A search in depth tries, from a state on, the token that is forced, and
then single characters, those first that close things; at first for short ways, then for longer ones. What it finds
need not be the shortest, but from behind its first token, with one token less, a way is found again: who begins to
follow it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

CLOSERS = "\"}]),:;>.-_ 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n({[<+*/=|&!?@#$%^~\\'"
STEPS = 100  # states tried in one search


def way_out(
    parser: Any, ids: list[int], ends: Callable[[Any], bool], most: int, longest: int
) -> tuple[int, ...] | None:
    """Tokens, at most so many, behind which `ends` holds; None where none were found. `ids` are those of the closers,
    `longest` the bytes of the longest token. The parser stays as it is."""
    if ends(parser):
        return ()
    if _too_far(parser, most, longest):
        return None
    limits = [limit for limit in (2, 4, 8, 16) if limit < most]
    ways = (_search(parser, ids, ends, limit, longest) for limit in (*limits, most))
    return next((way for way in ways if way is not None), None)


def _too_far(parser: Any, most: int, longest: int) -> bool:
    """Whether so many tokens cannot even write what is forced: then what follows it need not be searched."""
    return len(parser.compute_ff_bytes()) > most * longest


def _search(
    parser: Any, ids: list[int], ends: Callable[[Any], bool], most: int, longest: int
) -> tuple[int, ...] | None:
    path: list[int] = []
    levels = [_followers(parser, ids)]
    for _ in range(STEPS):
        step = None
        while levels and step is None:
            step = next(levels[-1], None) if len(path) < most else None
            if step is None:
                levels.pop()
                del path[-1:]
        if step is None:
            return None
        token, after = step
        path.append(token)
        if ends(after):
            return tuple(path)
        far = _too_far(after, most - len(path), longest)
        levels.append(iter(()) if far else _followers(after, ids))
    return None


def _followers(parser: Any, ids: list[int]) -> Iterator[tuple[int, Any]]:
    forced = parser.compute_ff_tokens()[:1]
    for token in [*forced, *ids]:
        if parser.validate_tokens([token]) == 1:
            after = parser.deep_copy()
            if after.consume_token(token):
                yield token, after


def closers(texts: Iterable[bytes]) -> list[int]:
    """The tokens that are one of these characters, in their order."""
    places = {text: number for number, text in reversed(list(enumerate(texts)))}
    return [places[c.encode()] for c in CLOSERS if c.encode() in places]
