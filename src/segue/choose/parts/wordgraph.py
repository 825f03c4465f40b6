"""The order of a word graph: how far from the start every node lies, so that ways can be compared where they meet."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from segue.data import Automaton
from segue.models.constraint import Constraint
from segue.ops.automaton import Base

MOST = 200_000  # nodes of a graph that is searched


def levels(constraint: Constraint) -> dict[Hashable, int]:
    """The most tokens on a way from the start to every node (state of the automaton) that is left with an ordinary
    token: no edge leads to a smaller or an equal number. ValueError where the graph has a cycle or is too large."""
    automaton = constraint.automaton
    start = automaton.start()
    after: dict[Hashable, list[Hashable]] = {}
    finished: list[Hashable] = []
    under_way = {start}
    stack: list[tuple[Hashable, Iterable[Hashable]]] = [(start, iter(_behind(automaton, start, after)))]
    while stack:
        node, rest = stack[-1]
        for other in rest:
            if other in under_way:
                raise ValueError(
                    f"{constraint.name} allows texts of any length, and shortest paths need a graph without cycles: "
                    "take search=exact"
                )
            if other not in after:
                if len(after) >= MOST:
                    raise ValueError(f"{constraint.name} has a graph of more than {MOST} nodes: take search=exact")
                under_way.add(other)
                stack.append((other, iter(_behind(automaton, other, after))))
                break
        else:
            stack.pop()
            under_way.discard(node)
            finished.append(node)
    level = dict.fromkeys(reversed(finished), 0)
    for node in level:  # in topological order
        for other in after[node]:
            level[other] = max(level[other], level[node] + 1)
    return level


def _behind(automaton: Automaton, node: Hashable, after: dict[Hashable, list[Hashable]]) -> list[Hashable]:
    """The nodes that one token leads to, ends apart; they are kept in `after`."""
    moves = automaton.moves(node) if isinstance(automaton, Base) else None
    if moves is not None and moves[1] is None:
        found = [goal for token, goal in moves[0].items() if token not in automaton.end_ids]
    else:
        tokens = automaton.allowed(node).nonzero()[:, 0].tolist()
        found = [automaton.step(node, token) for token in tokens if token not in automaton.end_ids]
    after[node] = list(dict.fromkeys(goal for goal in found if goal is not None))
    return after[node]
