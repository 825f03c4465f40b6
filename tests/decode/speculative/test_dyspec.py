from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings
from segue.decode.speculative.dyspec import Dyspec
from segue.decode.speculative.multi_candidate import MultiCandidate
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.same_distribution import divergence
from segue.laws.worlds import neighbour, network_world, toy_world
from tests.decode.speculative.conftest import FirstTree


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("nodes", [2, 4])
def test_samples_follow_the_model(nodes: int, layerwise: bool) -> None:
    world = toy_world(3)
    settings = Settings(temperature=1.0, max_tokens=3)
    method = Dyspec(draft=neighbour(world.lm), nodes=nodes, layerwise=layerwise)
    found = distribution(world.lm, method, [0, 1], settings, 200_000)
    assert found.accepting
    assert total_variation(found.p, world.oracle.law([0, 1], settings)) < 1e-6  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_tree_is_the_best_of_its_size(seed: int, first_tree: FirstTree) -> None:
    """Sum of the values over all trees of m nodes, by brute force over connected sets of paths (V = 3, depth 3)."""
    world = toy_world(3, seed=seed)
    draft = neighbour(world.lm)
    most = 4
    tree = first_tree(world.lm, Dyspec(draft=draft, nodes=most), [0, 1], Settings(max_tokens=8))
    root = [0, 1, tree.tokens[0]]

    def value(path: tuple[int, ...]) -> float:
        share, text = 1.0, list(root)
        for token in path:
            share *= float(torch.softmax(draft.logits_after(text).float(), -1)[token])  # type: ignore[attr-defined]
            text.append(token)
        return share

    paths = [p for n in range(1, 5) for p in itertools.product(range(3), repeat=n)]
    values = {p: value(p) for p in paths}
    best = 0.0
    for chosen in itertools.combinations(sorted(values, key=values.__getitem__, reverse=True)[:16], most):
        if all(p[:-1] in chosen or len(p) == 1 for p in chosen):
            best = max(best, sum(values[p] for p in chosen))
    ours = sum(values[tuple(tree.tokens[i] for i in tree.path(n)[1:])] for n in range(1, len(tree)))
    assert len(tree) == most + 1
    assert ours == pytest.approx(best, rel=1e-5)


def test_values_fall_in_the_order_of_the_nodes(first_tree: FirstTree) -> None:
    world = network_world("llama")
    tree = first_tree(world.lm, Dyspec(draft=neighbour(world.lm), nodes=20), world.prompts[1], Settings(max_tokens=30))
    values = [1.0]
    for node in range(1, len(tree)):
        values.append(values[tree.parents[node]] * tree.score[node])
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(values))


def test_layers_take_a_forward_each(first_tree: FirstTree) -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    by_layer = Dyspec(draft=draft, nodes=12, layerwise=True)
    heap = Dyspec(draft=draft, nodes=12)
    tree = first_tree(world.lm, by_layer, world.prompts[1], Settings(max_tokens=30))
    (a,) = decode(world.lm, by_layer, [world.prompts[1]], Settings(max_tokens=30))
    (b,) = decode(world.lm, heap, [world.prompts[1]], Settings(max_tokens=30))
    depth = max(tree.depths)
    assert a.stats.draft_forwards < b.stats.draft_forwards
    assert a.stats.draft_forwards <= a.stats.rounds * (depth + 3)
    # Theta is one in `nodes`: nothing less likely is drafted.
    values = [1.0]
    for node in range(1, len(tree)):
        values.append(values[tree.parents[node]] * tree.score[node])
    assert all(values[parent] >= 1 / 12 - 1e-6 for parent in tree.parents[1:])


@pytest.mark.parametrize("number", range(4))
def test_no_fixed_tree_of_its_size_is_worth_as_much(number: int, first_tree: FirstTree) -> None:
    """Expected accepted tokens under the draft, the sum of the nodes' values, at 12 nodes. (With drawn tokens and q = p
    the first child is always accepted, so that there a chain is best.)"""
    world = network_world("llama")
    draft = neighbour(world.lm)
    fixed = {c: MultiCandidate(draft=draft, candidates=c) for c in ("3,1,1,1", "2,2,1", "12", "1,1,1,1")}
    settings = Settings(max_tokens=30)
    prompt = world.prompts[number]
    ours = worth(first_tree(world.lm, Dyspec(draft=draft, nodes=12), prompt, settings))
    others = {c: worth(first_tree(world.lm, method, prompt, settings)) for c, method in fixed.items()}
    print(f"expected accepted tokens at 12 nodes: dyspec {ours:.3f}, fixed {others}")
    assert ours > max(others.values())


def worth(tree: DraftTree) -> float:
    values = [1.0]
    for node in range(1, len(tree)):
        values.append(values[tree.parents[node]] * tree.score[node])
    return sum(values[1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"nodes": 0}, "nodes=0 is not allowed: at least 1"), ({"theta": 1.5}, "theta=1.5 is not allowed")],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dyspec(**fields)


@pytest.mark.parametrize("leaves", [1, 2])
def test_few_leaves_do_not_bias_a_shape_that_follows_the_draws(leaves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may take few leaves. Which tips come first depends on which sibling grew on, and so on what was drawn:
    keeping those would keep a second draw without the first."""
    settings = Settings(temperature=1.0, max_tokens=4)

    def moved() -> float:
        found = []
        for seed in range(2):
            world = toy_world(2, seed=seed)
            world.lm.most_leaves = leaves
            method = Dyspec(draft=neighbour(world.lm), nodes=4)
            found.append(divergence(method, world.lm, world.prompts[-1], settings))
        return max(found)

    assert moved() < 1e-9
    if leaves == 1:
        monkeypatch.setattr(DraftTree, "_beginning", first_tips)
        assert moved() > 0.1


def first_tips(tree: DraftTree, leaves: int) -> DraftTree:
    return tree.keep({0}.union(*(tree.path(tip) for tip in tree.leaves()[:leaves])))
