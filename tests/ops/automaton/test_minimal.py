"""The smallest graph of a closed list: the same language as its tree, and no two nodes from which the same follows."""

from __future__ import annotations

import random

import pytest

from segue.ops.automaton import Minimal, Trie

END = 5


def language(automaton: Minimal | Trie) -> set[tuple[int, ...]]:
    found, ways = set(), [((), automaton.start())]
    while ways:
        text, state = ways.pop()
        if automaton.accepting(state):
            found.add(text)
        own, _ = automaton.moves(state)
        ways += [((*text, token), goal) for token, goal in own.items()]
    return found


def futures(automaton: Minimal, state: int) -> frozenset[tuple[int, ...]]:
    """What can follow a node."""
    own, _ = automaton.moves(state)
    longer = {(token, *rest) for token, goal in own.items() for rest in futures(automaton, goal)}
    return frozenset(longer | ({()} if automaton.accepts(state) else set()))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_tree_with_equal_futures_joined(seed: int) -> None:
    draw = random.Random(seed)
    texts = {tuple(draw.choices(range(3), k=draw.randint(0, 6))) for _ in range(draw.randint(1, 40))}
    graph, tree = Minimal(6, [END], texts), Trie(6, [END], texts)
    assert language(graph) == language(tree) == texts
    all_futures = [futures(graph, state) for state in range(len(graph))]
    assert len(set(all_futures)) == len(graph) <= len(tree)
    for state, follows in enumerate(all_futures):
        assert graph.distance(state) == min(map(len, follows))
        assert graph.longest[state] == max(map(len, follows))
        assert all(goal < state for goal in graph.moves(state)[0].values())


def test_ends_and_budgets_are_those_of_every_automaton() -> None:
    graph = Minimal(6, [END], [[0, 1], [2, 1], [2, 1, 3]])
    assert len(graph) == 5
    state = graph.step(graph.start(), 0)
    assert state != graph.step(graph.start(), 2)
    assert graph.allowed(state).nonzero()[:, 0].tolist() == [1]
    assert graph.within(graph.start(), 1).sum() == 0
    whole = graph.step(state, 1)
    assert graph.allowed(whole).nonzero()[:, 0].tolist() == [END]
    assert graph.progress(graph.start()) == 0
    assert graph.progress(whole) == 3
    with pytest.raises(ValueError, match="at least one sequence"):
        Minimal(6, [END], [])
