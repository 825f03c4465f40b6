from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chisquare, power_divergence

from segue.data import DraftTree, Settings
from segue.decode.speculative import recursive
from segue.decode.speculative.recursive import Drafting, Recursive, conditioned
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation, walk
from segue.laws.worlds import neighbour, network_world, toy_world
from segue.models.run import Run
from segue.models.toy import ToyLM
from segue.ops.accept import accept
from tests.decode.speculative.conftest import FirstTree

Text = tuple[int, ...]
Levels = tuple[tuple[Text, ...], ...]  # the texts of every depth, in the order in which they are tried
PROMPT = [0, 1]


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
    settings = [Settings(temperature=1.0, max_tokens=2, seed=seed) for seed in range(3000)]
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


def sequences(lm: ToyLM, depth: int, before: Text = ()) -> dict[Text, float]:
    """Every text of that length behind the prompt and `before`, with its probability."""
    law: dict[Text, float] = {(): 1.0}
    for _ in range(depth):
        law = {
            (*text, token): p * share
            for text, p in law.items()
            for token, share in enumerate(lm.logits_after([*PROMPT, *before, *text]).softmax(-1).tolist())
        }
    return law


def beams(draft: ToyLM, width: int, depth: int) -> dict[Levels, float]:
    """The exact law of the stochastic beam's trees, by enumeration and without noise.

    The largest of perturbed log-probabilities are draws without replacement, and a prefix has the value of its best
    text: whole texts arrive one after the other, drawn without replacement, and a level keeps the first W prefixes to
    arrive of those that go on from the level above.
    """
    texts = sequences(draft, depth)
    law: dict[Levels, float] = defaultdict(float)

    def arrive(left: dict[Text, float], kept: Levels, chance: float) -> None:
        if all(len(level) == width for level in kept) or not left:
            law[kept] += chance
            return
        total = sum(left.values())
        for text, p in left.items():
            levels = [list(level) for level in kept]
            for at, level in enumerate(levels):
                prefix = text[: at + 1]
                if at and prefix[:-1] not in levels[at - 1]:
                    break
                if prefix not in level and len(level) < width:
                    level.append(prefix)
            arrive({t: q for t, q in left.items() if t != text}, tuple(map(tuple, levels)), chance * p / total)

    arrive(texts, ((),) * depth, 1.0)
    assert sum(law.values()) == pytest.approx(1)
    return dict(law)


def grown(draft: ToyLM, levels: Levels) -> DraftTree:
    """The tree of these texts."""
    tree, nodes = DraftTree.root(PROMPT[-1]), {(): 0}
    tree.replacement = False
    for text in itertools.chain(*levels):
        parent = nodes[text[:-1]]
        tree.q[parent] = draft.logits_after([*PROMPT, *text[:-1]]).softmax(-1)
        nodes[text] = tree.add(parent, text[-1], sampled=True)
    return tree


def moved(lm: ToyLM, draft: ToyLM, law: dict[Levels, float], depth: int, replacement: bool = False) -> float:
    """How far from the model's own law is what a round gives, with trees of this law and every branch of acceptance."""
    given: dict[Text, float] = defaultdict(float)
    for levels, chance in law.items():
        tree = grown(draft, levels)
        tree.replacement = replacement

        def play(source: Any, tree: DraftTree = tree) -> Text:
            texts = ([*PROMPT, *(tree.tokens[i] for i in tree.path(node)[1:])] for node in range(len(tree)))
            rows = [lm.logits_after(text).softmax(-1) for text in texts]
            path, token = accept(tree, lambda node: rows[node], source)
            assert token is not None
            return (*(tree.tokens[node] for node in path[1:]), token)

        for weight, text in walk(play):
            for rest, p in sequences(lm, depth + 1 - len(text), text).items():
                given[*text, *rest] += chance * weight * p
    return total_variation(dict(given), sequences(lm, depth + 1))


SHAPES = [(3, 2, 2), (3, 3, 2), (2, 2, 3), (2, 3, 3)]  # vocabulary, width, depth


@pytest.mark.parametrize(("vocabulary", "width", "depth"), SHAPES)
def test_the_law_of_a_round_with_a_beam_is_the_models(vocabulary: int, width: int, depth: int) -> None:
    """Without noise: exactly, with all trees and all branches of their acceptance, cut sequences included."""
    lm = ToyLM(vocabulary, 2, 1)
    draft = neighbour(lm)
    assert isinstance(draft, ToyLM)
    law = beams(draft, width, depth)
    assert moved(lm, draft, law, depth) < 1e-9
    if vocabulary > 2:  # of two tokens a refused one leaves the other, whatever the rule
        assert moved(lm, draft, law, depth, replacement=True) > 0.005


def drawn_levels(lm: ToyLM, draft: ToyLM, width: int, depth: int, seeds: int) -> Iterator[Levels]:
    """Trees of the method, by its own noise."""
    method = Recursive(draft=draft, mode="beam", width=width, depth=depth)
    noise = torch.Generator().manual_seed(5)
    run = Run(lm, PROMPT, Settings(temperature=1.0, max_tokens=depth + 2))
    for _ in range(seeds):
        tree, at = DraftTree.root(PROMPT[-1]), [(0, 0.0, 0.0)]
        levels = []
        for _ in range(depth):
            paths = [tuple(tree.tokens[i] for i in tree.path(node)[1:]) for node, _, _ in at]
            rows = [draft.logits_after([*PROMPT, *path]) for path in paths]
            at = method._beam(run, Drafting(None, noise), tree, at, rows)  # type: ignore[arg-type]
            levels.append(tuple(tuple(tree.tokens[i] for i in tree.path(node)[1:]) for node, _, _ in at))
        yield tuple(levels)


def alike(law: dict[Levels, float], seen: Counter[Levels]) -> float:
    """The p-value of a G-test of all levels at once; rare trees are taken together."""
    count = sum(seen.values())
    frequent = [levels for levels in law if law[levels] * count >= 5]
    observed = [seen[levels] for levels in frequent]
    expected = [law[levels] * count for levels in frequent]
    if count - sum(expected) > 1e-6 * count:
        observed.append(count - sum(observed))
        expected.append(count - sum(expected))
    assert len(frequent) > 10
    return float(power_divergence(observed, expected, lambda_="log-likelihood").pvalue)


@pytest.mark.parametrize(("vocabulary", "width", "depth"), SHAPES)
def test_trees_of_the_beam_have_the_enumerated_law(vocabulary: int, width: int, depth: int) -> None:
    """All levels and their order, at a false-alarm rate of one in a thousand, with a fixed seed."""
    lm = ToyLM(vocabulary, 2, 1)
    draft = neighbour(lm)
    assert isinstance(draft, ToyLM)
    law = beams(draft, width, depth)
    seen = Counter(drawn_levels(lm, draft, width, depth, 3000))
    assert set(seen) <= set(law)
    assert alike(law, seen) > 1e-3


def test_noise_that_forgets_its_parents_value_has_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recursive, "conditioned", lambda sums, parent, noise: conditioned(sums, 0.0, noise))
    lm = ToyLM(3, 2, 1)
    draft = neighbour(lm)
    assert isinstance(draft, ToyLM)
    seen = Counter(drawn_levels(lm, draft, 2, 2, 3000))
    law = beams(draft, 2, 2)
    assert alike({levels: law.get(levels, 0.0) for levels in {*law, *seen}}, seen) < 1e-6


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
