"""The lattice of texts against networkx and lists of all its paths, on random graphs with many merges."""

from __future__ import annotations

import itertools
import random
from typing import Any

import networkx as nx
import pytest

from segue.choose.parts.dag import Dag
from segue.laws.lattice import listed

MOST = 6


def grown(seed: int) -> Dag:
    """A random lattice over three tokens, of which 2 ends a text."""
    draw = random.Random(seed)
    dag, open_nodes = Dag(), [0]
    for _ in range(14):
        parent = dag.find(draw.choice(open_nodes))
        token = draw.randrange(3)
        node = dag.add(parent, token, -draw.random(), over=token == 2, cut=draw.random() < 0.8)
        if token != 2:
            open_nodes.append(node)
        others = [dag.find(n) for n in range(1, node)]
        alike = [n for n in others if dag.token(n) == token and not dag.related(node, n)]
        if alike and draw.random() < 0.6:
            dag.join(node, draw.choice(alike))
    return dag


def texts(dag: Dag, most: int = MOST) -> list[tuple[tuple[int, ...], float]]:
    """All paths of a lattice by networkx over its nodes."""
    graph = nx.DiGraph()
    graph.add_node(0)
    for node, inner in enumerate(dag._nodes):
        if dag.find(node) == node:
            graph.add_edges_from((before, node, {"logp": logp}) for before, logp in inner.before.items())
    assert nx.is_directed_acyclic_graph(graph)
    assert len(graph) == len(dag)
    found = []
    for path in nx.all_simple_paths(graph, 0, [n for n in graph if n], cutoff=most):
        last = dag._nodes[path[-1]]
        if last.over or (last.cut and len(path) - 1 == most):
            logp = sum(graph.edges[pair]["logp"] for pair in itertools.pairwise(path))
            found.append((tuple(dag.token(node) for node in path[1:]), logp))
    return found


def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    if not one or not other:
        return len(one) + len(other)
    same = one[-1] == other[-1]
    return min(
        distance(one[:-1], other) + 1, distance(one, other[:-1]) + 1, distance(one[:-1], other[:-1]) + (not same)
    )


@pytest.mark.parametrize("seed", range(60))
def test_texts_are_counted_as_listing_them_does(seed: int) -> None:
    dag = grown(seed)
    for most in (1, 3, MOST):
        every = texts(dag, most)
        assert dag.paths(most) == len(every)
        assert dag.texts(most) == len({text for text, _ in every})
        exported = sorted(listed(dag.as_dict(most), most))
        again = Dag.of(dag.as_dict(most))
        assert (again.paths(most), again.texts(most)) == (dag.paths(most), dag.texts(most))
        assert again.as_dict(most) == dag.as_dict(most)
        assert [text for text, _ in exported] == [text for text, _ in sorted(every)]
        assert [logp for _, logp in exported] == pytest.approx([logp for _, logp in sorted(every)])


@pytest.mark.parametrize("seed", range(60))
def test_the_best_paths_are_those_of_the_list(seed: int) -> None:
    dag = grown(seed)
    for penalty in (0.0, 0.75, 2.0):
        expected = sorted((logp / len(text) ** penalty for text, logp in texts(dag)), reverse=True)
        for count in (1, 4, 50):
            best = dag.best(count, MOST, lambda logp, length, penalty=penalty: logp / length**penalty)
            assert [p.logp / len(p.tokens) ** penalty for p in best] == pytest.approx(expected[:count])
            for path in best:
                assert path.tokens == tuple(dag.token(node) for node in path.nodes)


@pytest.mark.parametrize("seed", range(30))
def test_the_nearest_text_is_that_of_the_list(seed: int) -> None:
    dag, draw = grown(seed), random.Random(seed)
    for length in (0, 2, 4):
        reference = tuple(draw.randrange(3) for _ in range(length))
        found = dag.nearest(reference, MOST)
        every = texts(dag)
        if not every:
            assert found is None
            continue
        assert found is not None
        least = min(distance(text, reference) for text, _ in every)
        path, far = found
        assert far == least == distance(path.tokens, reference)
        assert path.logp == pytest.approx(max(p for t, p in every if distance(t, reference) == least))


def test_a_reference_that_the_lattice_holds_is_found() -> None:
    dag = grown(3)
    for text, _ in texts(dag):
        found = dag.nearest(text, MOST)
        assert found is not None
        assert (found[0].tokens, found[1]) == (text, 0)


def test_merging_keeps_every_text_and_closes_no_circle() -> None:
    dag = Dag()
    one = dag.add(dag.add(0, 7, -1.0), 8, -1.0)
    other = dag.add(dag.add(0, 6, -2.0), 8, -2.0)
    behind = dag.add(other, 5, -0.5, over=True)
    before = {text for text, _ in texts(dag, 3)}
    dag.join(other, one)
    assert before <= {text for text, _ in texts(dag, 3)}
    assert (7, 8, 5) in {text for text, _ in texts(dag, 3)}
    assert (len(dag), dag.merges, dag.find(other)) == (5, 1, one)
    again = dag.add(one, 8, -1.0)
    for wrong in (again, behind):
        with pytest.raises(ValueError, match="cannot be merged"):
            dag.join(wrong, one)


def test_an_empty_lattice_has_no_texts() -> None:
    dag = Dag()
    nothing: dict[str, Any] = {"tokens": [], "ends": [], "cuts": [], "edges": []}
    assert (dag.paths(3), dag.texts(3), dag.best(2, 3, lambda logp, length: logp)) == (0, 0, [])
    assert dag.nearest((1,), 3) is None
    assert dag.as_dict(3) == nothing
