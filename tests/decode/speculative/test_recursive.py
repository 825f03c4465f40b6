from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from segue.data import Settings
from segue.decode.speculative.recursive import Recursive, conditioned
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.worlds import neighbour, network_world, toy_world
from tests.decode.speculative.conftest import FirstTree


@pytest.mark.parametrize("branches", ["2", "2,2", "3,1"])
def test_constant_branching_follows_the_model(branches: str) -> None:
    world = toy_world(3)
    settings = Settings(temperature=1.0, max_tokens=3)
    found = distribution(world.lm, Recursive(draft=neighbour(world.lm), branches=branches), [0, 1], settings, 200_000)
    assert total_variation(found.p, world.oracle.law([0, 1], settings)) < 1e-6  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [2, 3])
def test_the_stochastic_beam_follows_the_model(width: int) -> None:
    """Its noise is continuous, so that it is sampled and tested: a chi-square at a level of one in ten thousand."""
    world = toy_world(3)
    method = Recursive(draft=neighbour(world.lm), mode="beam", width=width, depth=2)
    settings = [Settings(temperature=1.0, max_tokens=2, seed=seed) for seed in range(6000)]
    counts: Counter[tuple[int, ...]] = Counter()
    for one in settings:
        (answer,) = decode(world.lm, method, [[0, 1]], one)
        counts[tuple(answer.tokens)] += 1
    law = world.oracle.law([0, 1], settings[0])  # type: ignore[attr-defined]
    texts = [text for text, p in law.items() if p * len(settings) > 5]
    rest = sum(p for text, p in law.items() if text not in texts)
    seen = [counts[text] for text in texts]
    expected = [law[text] * len(settings) for text in texts]
    if rest > 0:
        seen.append(len(settings) - sum(seen))
        expected.append(rest * len(settings))
    assert chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["constant", "beam"])
def test_siblings_never_repeat(mode: str, first_tree: FirstTree) -> None:
    world = network_world("llama")
    method = Recursive(draft=neighbour(world.lm), mode=mode, branches="3,2", width=4, depth=3)
    for seed in range(20):
        tree = first_tree(world.lm, method, world.prompts[1], Settings(max_tokens=3, temperature=1.0, seed=seed))
        if tree is None:
            continue
        for children in tree.children():
            tokens = [tree.tokens[c] for c in children]
            assert len(tokens) == len(set(tokens))
        assert not tree.replacement
        if mode == "beam":
            assert max(Counter(tree.depths[1:]).values()) <= 4


def test_the_beam_keeps_sequences_drawn_without_replacement(first_tree: FirstTree) -> None:
    """The set of leaves (V = 3, D = 2, W = 2) against the enumeration of two draws without replacement."""
    world = toy_world(3)
    draft = neighbour(world.lm)
    method = Recursive(draft=draft, mode="beam", width=2, depth=2)
    (first,) = decode(world.lm, method, [[0, 1]], Settings(max_tokens=1))
    root = first.tokens[0]
    seen: Counter[frozenset[tuple[int, ...]]] = Counter()
    for seed in range(4000):
        tree = first_tree(world.lm, method, [0, 1], Settings(max_tokens=4, temperature=1.0, seed=seed))
        if tree is not None and tree.tokens[0] == root and 2 in tree.depths:
            leaves = [n for n in range(len(tree)) if tree.depths[n] == 2]
            seen[frozenset(tuple(tree.tokens[i] for i in tree.path(n)[1:]) for n in leaves)] += 1
    p = {}
    for pair in itertools.product(range(3), repeat=2):
        one = torch.softmax(draft.logits_after([1, root]), -1)  # type: ignore[attr-defined]
        two = torch.softmax(draft.logits_after([root, pair[0]]), -1)  # type: ignore[attr-defined]
        p[pair] = float(one[pair[0]] * two[pair[1]])
    law: Counter[frozenset[tuple[int, ...]]] = Counter()
    for a, b in itertools.permutations(p, 2):
        law[frozenset([a, b])] += p[a] * p[b] / (1 - p[a])  # type: ignore[assignment]
    count = sum(seen.values())
    assert count > 500
    sets = [s for s in law if law[s] * count > 5]
    observed = [seen[s] for s in sets] + [count - sum(seen[s] for s in sets)]
    expected = [law[s] * count for s in sets] + [(1 - sum(law[s] for s in sets)) * count]
    assert chisquare(observed, expected).pvalue > 1e-4


def test_the_largest_child_has_its_parents_value() -> None:
    noise = torch.Generator().manual_seed(0)
    for parent in (-3.0, 0.0, 2.5):
        sums = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64).log() - 1.0
        values = conditioned(sums, parent, noise)
        assert float(values.max()) == pytest.approx(parent)
        assert float(values[3]) == float("-inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "sbs"}, "mode='sbs' is not allowed: constant or beam"),
        ({"branches": "2,zero"}, "numbers of at least 1, like 2,2,2"),
        ({"width": 0}, "width=0 is not allowed: at least 1"),
        ({"depth": 0}, "depth=0 is not allowed: at least 1"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recursive(**fields)
