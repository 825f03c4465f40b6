"""What there is to see of a lattice: where its nodes stand, how many texts go through each, and the likeliest of them.

Everything is computed from the lattice as methods export it (`Dag.as_dict`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from segue.bench.dependency import shown
from segue.choose.parts.dag import Dag
from segue.choose.search.lattice import Lattice
from segue.data import Completion, Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import sequences_of
from segue.models.run import Run

SWEEPS = 6  # over the columns, while their nodes are brought near those that they are joined to


def grown(
    lm: LM, method: Lattice, prompt: list[int], settings: Settings, progress: Callable[[int], None] = lambda rows: None
) -> Completion:
    """The answer to one prompt, with the lattice in its trace. `progress` is told of the tokens read so far."""
    run = Run(lm, prompt, settings, method="lattice")
    run.width = sequences_of(method)
    engine = Engine()
    job = engine.add(run, method.run(run))
    for _ in engine.steps():
        progress(min(max(run.stats.rows - len(prompt), 0), method.calls))
    if job.error is not None:
        raise job.error
    return run.completion()


@dataclass(slots=True)
class Through:
    """Texts through one node (or over one edge): how many, and the likeliest by its stated log-probability."""

    texts: int = 0
    logp: float = float("-inf")
    nodes: tuple[int, ...] = ()

    def add(self, texts: int, logp: float, nodes: tuple[int, ...]) -> None:
        self.texts += texts
        if logp > self.logp:
            self.logp, self.nodes = logp, nodes


@dataclass(slots=True)
class Passage:
    """What goes through every node and over every edge of a lattice."""

    nodes: dict[int, Through] = field(default_factory=dict)
    edges: dict[tuple[int, int], Through] = field(default_factory=dict)


def passage(lattice: dict[str, Any], most: int) -> Passage:
    """By counting, for every length, the ways to a node and the ways on from it, with the likeliest of each."""
    after: dict[int, list[tuple[int, float]]] = {}
    for start, end, logp in lattice["edges"]:
        after.setdefault(start, []).append((end, logp))
    ways: list[dict[int, Through]] = [{0: Through(1, 0.0, (0,))}]
    while len(ways) <= most:
        level: dict[int, Through] = {}
        for node, to in ways[-1].items():
            for end, logp in after.get(node, ()):
                level.setdefault(end, Through()).add(to.texts, to.logp + logp, (*to.nodes, end))
        ways.append(level)
    found = Passage()
    behind: dict[int, Through] = {}
    ends, cuts = set(lattice["ends"]), set(lattice["cuts"])
    for length in reversed(range(len(ways))):
        here: dict[int, Through] = {}
        for node, to in ways[length].items():
            on = Through()
            if node in ends or (length == most and node in cuts):
                on.add(1, 0.0, ())
            for end, logp in after.get(node, ()) if length < most else ():
                if end in behind and behind[end].texts:
                    rest = behind[end]
                    on.add(rest.texts, logp + rest.logp, (end, *rest.nodes))
                    whole = to.logp + logp + rest.logp
                    edge = found.edges.setdefault((node, end), Through())
                    edge.add(to.texts * rest.texts, whole, (*to.nodes, end, *rest.nodes))
            if on.texts:
                here[node] = on
                place = found.nodes.setdefault(node, Through())
                place.add(to.texts * on.texts, to.logp + on.logp, (*to.nodes, *on.nodes))
        behind = here
    return found


def places(lattice: dict[str, Any]) -> list[tuple[int, float]]:
    """Column and row of every node: each stands to the right of all that lead to it, and near those it is joined to."""
    column = [0] * len(lattice["tokens"])
    beside: list[list[int]] = [[] for _ in column]
    for start, end, _ in lattice["edges"]:  # in the order of their starts, and edges lead to larger numbers
        column[end] = max(column[end], column[start] + 1)
        beside[start].append(end)
        beside[end].append(start)
    columns: list[list[int]] = [[] for _ in range(max(column, default=-1) + 1)]
    for node, where in enumerate(column):
        columns[where].append(node)
    row = [0.0] * len(column)
    for order in columns:
        _stack(order, row)
    for sweep in range(SWEEPS):
        for order in columns if sweep % 2 == 0 else reversed(columns):
            order.sort(key=lambda node: (sum(row[n] for n in beside[node]) / max(len(beside[node]), 1), row[node]))
            _stack(order, row)
    return list(zip(column, row, strict=True))


def _stack(nodes: list[int], row: list[float]) -> None:
    """Put a column's nodes one below the other around the middle."""
    for i, node in enumerate(nodes):
        row[node] = i - (len(nodes) - 1) / 2


def spelled(lattice: dict[str, Any], tokens: Sequence[int]) -> list[int]:
    """The nodes of a text, root first; of several ways the first. Empty where the lattice does not hold it."""
    after: dict[int, list[int]] = {}
    for start, end, _ in lattice["edges"]:
        after.setdefault(start, []).append(end)
    ways: dict[int, list[int]] = {0: [0]}
    for token in tokens:
        level: dict[int, list[int]] = {}
        for node, way in ways.items():
            for end in after.get(node, ()):
                if lattice["tokens"][end] == token:
                    level.setdefault(end, [*way, end])
        ways = level
    return next(iter(ways.values()), [])


def data(
    answer: Completion, lm: LM, method: Lattice, prompt: list[int], settings: Settings, reference: str | None = None
) -> dict[str, Any]:
    """Everything that is shown, for JSON. `reference`: a text of which the nearest one in the lattice is wanted (the
    oracle path)."""
    told = answer.trace[0]
    lattice, most = told["lattice"], told["most"]
    through, where = passage(lattice, most), places(lattice)
    facts = ("texts", "paths", "nodes", "merges", "calls", "off_mean", "most")
    return {
        "model": lm.name,
        "settings": asdict(method) | {"max_tokens": settings.max_tokens},
        "prompt": lm.decode(prompt) or " ".join(map(str, prompt)),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "forwards": answer.stats.target_forwards,
        **{name: told[name] for name in facts},
        "candidates": [
            c.as_dict() | {"stated": pair["stated"], "nodes": spelled(lattice, c.tokens)}
            for c, pair in zip(answer.candidates or [], told["stated"], strict=False)  # the last may be no candidate
        ],
        "lattice_nodes": list(_nodes(lm, lattice, through, where)),
        "lattice_edges": [
            {"from": a, "to": b, "logp": logp, "texts": through.edges[a, b].texts} for a, b, logp in lattice["edges"]
        ],
        "reference": None if reference is None else _nearest(lm, lattice, most, reference),
    }


def _nodes(
    lm: LM, lattice: dict[str, Any], through: Passage, where: list[tuple[int, float]]
) -> Iterator[dict[str, Any]]:
    for node, (token, (column, row)) in enumerate(zip(lattice["tokens"], where, strict=True)):
        known = through.nodes[node]
        yield {
            "token": token,
            "shown": shown(lm, token) if node else "▸",
            "column": column,
            "row": row,
            "ends": node in lattice["ends"],
            "texts": known.texts,
            "likeliest": list(known.nodes),
            "likeliest_text": lm.decode([lattice["tokens"][n] for n in known.nodes[1:]]),
            "likeliest_logp": known.logp,
        }


def _nearest(lm: LM, lattice: dict[str, Any], most: int, reference: str) -> dict[str, Any]:
    tokens = lm.encode(reference, special=False)
    found = Dag.of(lattice).nearest(tokens, most)
    if found is None:
        return {"text": reference, "tokens": tokens, "distance": None, "nearest": None, "nodes": []}
    path, distance = found
    return {
        "text": reference,
        "tokens": tokens,
        "distance": distance,
        "nearest": lm.decode(path.tokens),
        "nodes": [0, *path.nodes],
    }
