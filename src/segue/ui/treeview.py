"""The draft tree of one step as inline SVG: what was accepted, what was rejected, and what the model said instead.

Nothing is told by colour alone: accepted nodes have a thick border and a tick, rejected ones a broken border and a
struck text, nodes that are only read back a dotted border and slanted text.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from segue.ui.watch import UNNAMED, Step

WIDTH, HEIGHT = 100, 34  # of a node, in pixels
ACROSS, DOWN = 128, 42  # from a node's corner to its child's, and to its sibling's
MARGIN = 8
LETTERS, SMALL = 11, 15  # characters of a token and of the line below it that fit
SEEN = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})


def shown(text: str) -> str:
    """A token's text on one line, with its spaces to be seen; not escaped yet."""
    return text.translate(SEEN).replace(" ", "␣")


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def svg(step: Step, text: Callable[[int], str]) -> str:
    """The picture. `text` spells a token; what it gives is escaped here."""
    kept = set(step.path)
    children: list[list[int]] = [[] for _ in step.tokens]
    for node in range(1, len(step.tokens)):
        children[step.parents[node]].append(node)
    end = step.path[-1] if step.path else None
    column, row, own = _places(children, end if step.own is not None else None, kept)
    wide = max([*column, own[0] if own else 0]) * ACROSS + WIDTH + 2 * MARGIN
    high = max([*row, own[1] if own else 0]) * DOWN + HEIGHT + 2 * MARGIN
    several = len(_drafters(step)) > 1
    parts = [
        f'<svg class="seg-tree" xmlns="http://www.w3.org/2000/svg" role="img" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}"><title>{escape(_said(step))}</title>'
    ]
    for node in range(1, len(step.tokens)):
        before = step.parents[node]
        line = "kept" if node in kept else "gone"
        parts.append(_edge(line, (column[before], row[before]), (column[node], row[node])))
    if own and end is not None:
        parts.append(_edge("kept", (column[end], row[end]), own))
    for node, token in enumerate(step.tokens):
        kind = _kind(step, node, kept)
        source = step.source[node] or UNNAMED
        below = f"{step.score[node]:.2f}" + (f" {source}" if several else "")
        below = {"root": "pending", "window": "read back"}.get(kind, below)
        told = "the token that the tree begins with" if node == 0 else f"{kind}, {source}, score {step.score[node]:.3f}"
        parts.append(_box(kind, (column[node], row[node]), shown(text(token)), below, told))
    if own and step.own is not None:
        parts.append(_box("own", own, shown(text(step.own)), "the model", "what the model itself chose", node=False))
    return "".join([*parts, "</svg>"])


def _places(
    children: list[list[int]], end: int | None, kept: set[int]
) -> tuple[list[int], list[int], tuple[int, int] | None]:
    """Column and row of every node, and of the model's own token behind node `end`. A column is a depth; each node
    takes the first free row of its column that is not above its parent's, accepted ones first: no two edges cross."""
    column, row = [0] * len(children), [0] * len(children)
    free: dict[int, int] = {}
    own: tuple[int, int] | None = None
    stack = [(0, -1)]
    while stack:
        node, parent = stack.pop()
        column[node] = 0 if parent < 0 else column[parent] + 1
        row[node] = max(free.get(column[node], 0), 0 if parent < 0 else row[parent])
        free[column[node]] = row[node] + 1
        if node == end:
            own = column[node] + 1, max(free.get(column[node] + 1, 0), row[node])
            free[own[0]] = own[1] + 1
        mine = sorted(children[node], key=lambda child: child not in kept)
        stack += [(child, node) for child in reversed(mine)]
    return column, row, own


def _drafters(step: Step) -> list[str]:
    """Who drafted nodes that could have been accepted, in order."""
    own = (step.source[node] or UNNAMED for node in range(1, len(step.tokens)) if not step.scored_only[node])
    return list(dict.fromkeys(own))


def _kind(step: Step, node: int, kept: set[int]) -> str:
    if node == 0:
        return "root"
    if step.scored_only[node]:
        return "window"
    return "accepted" if node in kept else "rejected"


def _edge(kind: str, start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] * ACROSS + WIDTH + MARGIN, start[1] * DOWN + HEIGHT / 2 + MARGIN
    right, below = end[0] * ACROSS + MARGIN, end[1] * DOWN + HEIGHT / 2 + MARGIN
    middle = (x + right) / 2
    return f'<path class="edge {kind}" d="M{x} {y:g}C{middle:g} {y:g} {middle:g} {below:g} {right} {below:g}"/>'


def _box(kind: str, at: tuple[int, int], text: str, below: str, told: str, *, node: bool = True) -> str:
    x, y = at[0] * ACROSS + MARGIN, at[1] * DOWN + MARGIN
    middle = x + WIDTH / 2
    mark = {"accepted": "✓ ", "own": "→ "}.get(kind, "")
    return (
        f'<g class="{"node " if node else ""}{kind}"><title>{escape(f"{text}: {told}")}</title>'
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="word" x="{middle:g}" y="{y + 15}">{mark}{escape(short(text, LETTERS))}</text>'
        f'<text class="who" x="{middle:g}" y="{y + 28}">{escape(short(below, SMALL))}</text></g>'
    )


def _said(step: Step) -> str:
    return f"A tree of {len(step.tokens)} nodes: {step.drafted} drafted, {step.kept} accepted"


def panel(step: Step, number: int, text: Callable[[int], str]) -> str:
    """The picture with a line that says what happened in the step."""
    words = f"Step {number + 1}: "
    drafters = f" by {', '.join(_drafters(step))}"
    words += f"{step.drafted} drafted{drafters}, {step.kept} accepted" if step.drafted else "nothing drafted"
    window = sum(step.scored_only)
    words += f", {window} more only read back" if window else ""
    words += f", {step.count} token{'s' * (step.count != 1)} given out." if step.count else ", no token given out."
    said = f'<p class="seg-said">{escape(words)}</p>'
    return f'<div class="seg-step">{said}<div class="seg-roll">{svg(step, text)}</div></div>'
