"""One side of the playground as HTML: its text token by token, its steps, its figures. All text is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from segue.data import Stats
from segue.ui.race import Side, Split
from segue.ui.watch import Origin, Step

STYLES = 6  # of the sheet: colour and kind of underline by drafter
PARTS = (
    ("prefill", "reading the prompt"),
    ("drafting", "drafting"),
    ("verifying", "the model's forwards"),
    ("rest", "the rest"),
)


def side(one: Side, palette: dict[str, int], *, state: str) -> str:
    """All of a side but the tree. `palette` numbers the drafters of both sides in order of appearance."""
    origins, steps, pieces = list(one.log.origins), list(one.log.steps), list(one.pieces)
    for origin in origins:
        if origin.source is not None:
            palette.setdefault(origin.source, len(palette))
    stats = one.run.stats if one.run is not None else None
    over = one.completion.finish_reason if one.completion is not None else None
    return "".join([
        f'<section class="seg-side" data-state="{escape(state)}"><h3>{escape(one.name)} '
        f'<span class="seg-state">{escape(_state(state, over))}</span></h3>',
        trouble(one.trouble) if one.trouble else "",
        figures(stats, one.seconds) if stats is not None else "",
        split(one.split, one.seconds),
        legend(origins, palette, sum(step.drafted - step.kept for step in steps)),
        text(pieces, origins, palette),
        strip(steps, one.selected),
        f'<p class="seg-note">{escape(stats.note)}</p>' if stats is not None and stats.note else "",
        "</section>",
    ])  # fmt: skip


def _state(state: str, over: str | None) -> str:
    if state == "over" and over is not None:
        return {"stop": "finished: the text ended", "length": "finished: all tokens used"}[over]
    return {"over": "", "waiting": "waiting", "running": "writing …"}.get(state, state)


def trouble(message: str) -> str:
    return f'<p class="seg-trouble" role="alert">⚠ {escape(message)}</p>'


def text(pieces: Sequence[str], origins: Sequence[Origin], palette: dict[str, int]) -> str:
    """The output, a span for each token that says where it comes from."""
    spans = []
    for piece, origin in zip(pieces, origins, strict=False):  # the run may have gone on between the two
        kind = "own" if origin.source is None else f"draft s{palette.get(origin.source, 0) % STYLES}"
        line = " nl" if "\n" in piece else "" if piece else " mute"
        step = "" if origin.step is None else f' data-step="{origin.step}"'
        told = origin.source if origin.source is not None else "the model itself"
        told += "" if origin.step is None else f", step {origin.step + 1}"
        spans.append(f'<span class="tok {kind}{line}"{step} title="{escape(told)}">{escape(piece)}</span>')
    return f'<div class="seg-text">{"".join(spans)}</div>'


def legend(origins: Sequence[Origin], palette: dict[str, int], rejected: int) -> str:
    """What the marks of a text mean, with how many tokens have each."""
    counts = Counter(origin.source for origin in origins)
    items = [f'<li><span class="tok own">the model itself</span> {counts.get(None, 0)}</li>']
    for source, count in sorted(
        ((s, c) for s, c in counts.items() if s is not None), key=lambda item: palette[item[0]]
    ):
        kind = f"draft s{palette[source] % STYLES}"
        items.append(f'<li><span class="tok {kind}">{escape(source)}</span> {count}</li>')
    items.append(f'<li><del class="tok gone">rejected drafts</del> {rejected}</li>')
    return f'<ul class="seg-legend">{"".join(items)}</ul>'


def strip(steps: Sequence[Step], selected: int | None) -> str:
    """A button for each step: a bar as high as its draft, filled as far as it was accepted."""
    if not steps:
        return '<div class="seg-strip"></div>'
    tallest = max(1, max(step.drafted for step in steps))
    buttons = []
    for number, step in enumerate(steps):
        told = f"step {number + 1}: {step.kept} of {step.drafted} drafts accepted, {step.count} tokens"
        high, full = round(30 * step.drafted / tallest, 1), round(30 * step.kept / tallest, 1)
        chosen = ' aria-pressed="true"' if number == selected else ""
        buttons.append(
            f'<button type="button" data-step="{number}"{chosen} title="{told}" aria-label="{told}">'
            f'<i style="height:{high}px"><b style="height:{full}px"></b></i><u>{step.kept}</u></button>'
        )
    return (
        '<p class="seg-hint">Steps, one a forward: high as the draft, filled as far as it was accepted, the number of '
        f'accepted tokens below. Click one for its tree.</p><div class="seg-strip">{"".join(buttons)}</div>'
    )


def figures(stats: Stats, seconds: float) -> str:
    """What the run came to so far."""
    share = "none drafted" if stats.acceptance is None else f"{stats.acceptance:.0%} of {stats.drafted}"
    rate = f"{stats.tokens / seconds:.1f}" if seconds else "0"
    cells = {
        "tokens per forward": f"{stats.tokens_per_forward:.2f}",
        "tokens": str(stats.tokens),
        "forwards": f"{stats.target_forwards}" + (f" + {stats.draft_forwards} draft" if stats.draft_forwards else ""),
        "drafts accepted": share,
        "tokens a second": rate,
        "seconds": f"{seconds:.2f}",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells.items())
    return f'<dl class="seg-figures">{items}</dl>'


def split(parts: Split, seconds: float) -> str:
    """Where the time went: a bar, and the same in words."""
    whole = max(seconds, 1e-9)
    shares = [(name, words, getattr(parts, name)) for name, words in PARTS]
    bar = "".join(f'<span class="{name}" style="width:{100 * value / whole:.2f}%"></span>' for name, _, value in shares)
    words = "".join(f'<li><i class="{name}"></i>{words} {value:.2f} s</li>' for name, words, value in shares)
    return f'<div class="seg-split" aria-hidden="true">{bar}</div><ul class="seg-legend">{words}</ul>'


def verdict(left: Side, right: Side) -> str:
    """What came of a race that both sides finished, in plain words."""
    a, b = left.completion, right.completion
    if a is None or b is None:
        return ""
    per = a.stats.tokens_per_forward, b.stats.tokens_per_forward
    rates = a.stats.tokens / max(left.seconds, 1e-9), b.stats.tokens / max(right.seconds, 1e-9)
    fast, slow, ratio = (
        (left, right, rates[0] / rates[1]) if rates[0] >= rates[1] else (right, left, rates[1] / rates[0])
    )
    words = f"{left.name} wrote {per[0]:.2f} tokens per forward, {right.name} {per[1]:.2f}. "
    if ratio < 1.01:
        words += "They were equally fast. "
    else:
        words += f"By its own clock {fast.name} was {ratio:.2f} times as fast as {slow.name}. "
    same = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
    if a.tokens == b.tokens:
        words += "Both wrote the same tokens."
    elif same is None:
        words += "One text is the beginning of the other."
    else:
        words += f"Their texts part at token {same + 1}."
    return f'<p class="seg-verdict" data-same="{str(a.tokens == b.tokens).lower()}">{escape(words)}</p>'
