"""The acceptance rule by itself, on trees of every construction: the law of the first two tokens is p's, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from segue.data import DraftTree
from segue.laws.enumerate import Law, ScriptedChance, total_variation, walk
from segue.ops.accept import accept, accept_greedy, one_hot, residual, without
from segue.ops.chance import Chance

V = 3
Grow = Callable[[Chance], DraftTree]


class Tables:
    """A target p and a draft q over three tokens of a vocabulary of V."""

    def __init__(self, seed: int, size: int = V) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.p0, self.q0 = (torch.randn(2, size, generator=generator, dtype=torch.float64) * 1.2).softmax(-1)
        self.p1, self.q1 = (torch.randn(2, size, size, generator=generator, dtype=torch.float64) * 1.2).softmax(-1)
        self.p2 = torch.full((size,), 1 / size, dtype=torch.float64)

    def p_after(self, tree: DraftTree, node: int) -> Tensor:
        return (self.p0, self.p1[tree.tokens[node]], self.p2)[tree.depths[node]].clone()

    def q_after(self, tree: DraftTree, node: int) -> Tensor:
        return (self.q0, self.q1[tree.tokens[node]])[tree.depths[node]].clone()

    def pairs(self) -> Law:
        return {(i, j): float(self.p0[i] * self.p1[i, j]) for i in range(len(self.p0)) for j in range(len(self.p0))}


def joint(outputs: Iterable[tuple[float, list[int]]], tables: Tables) -> Law:
    """Law of the first two tokens of outputs with weights; where a round gave one token, p gives the second."""
    law: Law = defaultdict(float)
    for weight, tokens in outputs:
        if len(tokens) > 1:
            law[tokens[0], tokens[1]] += weight
        else:
            for second, chance in enumerate(tables.p1[tokens[0]].tolist()):
                law[tokens[0], second] += weight * chance
    return law


def verified(grow: Grow, tables: Tables) -> Law:
    """Law of the first two tokens when `grow` drafts and `accept` decides."""

    def play(chance: ScriptedChance) -> list[int]:
        tree = grow(chance)
        path, token = accept(tree, lambda node: tables.p_after(tree, node), chance)
        return [*(tree.tokens[node] for node in path[1:]), token]

    return joint(walk(play), tables)


def sampled(tables: Tables, widths: tuple[int, ...], replacement: bool) -> Grow:
    """Children drawn from q, `widths[d]` at depth d."""

    def grow(chance: Chance) -> DraftTree:
        tree = DraftTree.root(0)
        tree.replacement = replacement
        level = [0]
        for width in widths:
            level = [child for node in level for child in draw(tree, node, width, chance)]
        return tree

    def draw(tree: DraftTree, node: int, width: int, chance: Chance) -> list[int]:
        q = tree.q[node] = tables.q_after(tree, node)
        children = []
        for _ in range(width):
            children.append(tree.add(node, chance.index(q), sampled=True))
            if not replacement:
                q = without(q, tree.tokens[children[-1]])
        return children

    return grow


def top_two(tables: Tables, depth: int = 2, as_sampled: bool = False) -> Grow:
    """The two likeliest children under q of every node: nothing is drawn."""

    def grow(chance: Chance) -> DraftTree:
        tree = DraftTree.root(0)
        level = [0]
        for _ in range(depth):
            following = []
            for node in level:
                q = tables.q_after(tree, node)
                if as_sampled:
                    tree.q[node] = q
                following += [tree.add(node, int(t), sampled=as_sampled) for t in q.topk(2).indices]
            level = following
        return tree

    return grow


def mixed(tables: Tables, order: str) -> Grow:
    """Children of the root in the order given: s drawn from q, d the likeliest under q, e the token 1, and below the
    first of them one of each again."""

    def grow(chance: Chance) -> DraftTree:
        tree = DraftTree.root(0)
        add(tree, 0, order, chance)
        add(tree, 1, order[::-1], chance)
        return tree

    def add(tree: DraftTree, node: int, order: str, chance: Chance) -> None:
        q = tree.q[node] = tables.q_after(tree, node)
        for kind in order:
            if kind == "s":
                tree.add(node, chance.index(q), sampled=True)
            else:
                tree.add(node, int(q.argmax()) if kind == "d" else 1)

    return grow


CONSTRUCTIONS: dict[str, Callable[[Tables], Grow]] = {
    "nothing drafted": lambda t: lambda chance: DraftTree.root(0),
    "one drawn, depth 1": lambda t: sampled(t, (1,), True),
    "a drawn chain": lambda t: sampled(t, (1, 1), True),
    "two drawn with replacement": lambda t: sampled(t, (2, 1), True),
    "three drawn with replacement": lambda t: sampled(t, (3,), True),
    "two drawn without replacement": lambda t: sampled(t, (2, 1), False),
    "all drawn without replacement": lambda t: sampled(t, (V,), False),
    "two at both depths, without replacement": lambda t: sampled(t, (2, 2), False),
    "drawn, then cut": lambda t: lambda chance: sampled(t, (2, 2), False)(chance).truncate(5),
    "drawn, then cut to depth 1": lambda t: lambda chance: sampled(t, (2, 1), False)(chance).truncate(9, 1),
    "a retrieved chain": lambda t: lambda chance: DraftTree.chain([0, 2, 1]),
    "retrieved paths": lambda t: lambda chance: DraftTree.from_paths(0, [(2, 1), (2, 0), (1, 1)]),
    "the two likeliest": lambda t: top_two(t),
    "drawn, then likeliest": lambda t: mixed(t, "sd"),
    "likeliest, then drawn": lambda t: mixed(t, "ds"),
    "drawn twice around a retrieved one": lambda t: mixed(t, "ses"),
    "the same one retrieved twice": lambda t: mixed(t, "ee"),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_the_law_is_exact(name: str) -> None:
    for seed in range(2):
        tables = Tables(seed)
        law = verified(CONSTRUCTIONS[name](tables), tables)
        assert total_variation(law, tables.pairs()) < 1e-12


def test_two_with_replacement_at_both_depths() -> None:
    tables = Tables(0, 2)
    assert total_variation(verified(sampled(tables, (2, 2), True), tables), tables.pairs()) < 1e-12


def worst(wrong: Callable[[Tables], Law]) -> float:
    return max(total_variation(wrong(tables), tables.pairs()) for tables in map(Tables, range(5)))


def test_likeliest_children_taken_for_drawn_ones_are_wrong() -> None:
    assert worst(lambda t: verified(top_two(t, as_sampled=True), t)) > 0.5


def test_an_independent_draw_per_path_is_wrong() -> None:
    """Every path of the two-likeliest tree is tried on its own, the longest wins, and a fresh token follows it."""

    def play(chance: Chance, tables: Tables) -> list[int]:
        tree = top_two(tables)(chance)
        best = [0]
        for leaf in range(3, 7):
            path = [0]
            for node in tree.path(leaf)[1:]:
                if chance.index(tables.p_after(tree, path[-1])) != tree.tokens[node]:
                    break
                path.append(node)
            best = max(best, path, key=len)
        return [*(tree.tokens[node] for node in best[1:]), chance.index(tables.p_after(tree, best[-1]))]

    tables = Tables(0)
    law = joint(walk(lambda chance: play(chance, tables), most=200_000), tables)
    assert total_variation(law, tables.pairs()) > 0.2


def test_draws_without_replacement_taken_for_draws_with_it_are_wrong() -> None:
    def mislabelled(tables: Tables) -> Grow:
        def grow(chance: Chance) -> DraftTree:
            tree = sampled(tables, (2,), False)(chance)
            tree.replacement = True
            return tree

        return grow

    assert worst(lambda t: verified(mislabelled(t), t)) > 0.2


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_tokens_per_round_follow_the_closed_form(gamma: int) -> None:
    """With the same p and q everywhere, E[tokens] = (1 - alpha^(gamma+1)) / (1 - alpha), alpha = sum of min(p, q)."""
    tables = Tables(3)
    p, q = tables.p0, tables.q0
    alpha = float(torch.minimum(p, q).sum())

    def play(chance: ScriptedChance) -> int:
        tree = DraftTree.root(0)
        for step in range(gamma):
            tree.q[step] = q
            tree.add(step, chance.index(q), sampled=True)
        return len(accept(tree, lambda node: p.clone(), chance)[0])

    expected = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert sum(w * tokens for w, tokens in walk(play)) == pytest.approx(expected, abs=1e-12)


def test_lenience_keeps_more() -> None:
    tables = Tables(0)

    def kept(lenience: float) -> float:
        def play(chance: ScriptedChance) -> int:
            tree = sampled(tables, (1, 1), True)(chance)
            return len(accept(tree, lambda node: tables.p_after(tree, node), chance, lenience)[0])

        return sum(w * n for w, n in walk(play))

    assert kept(0.25) > kept(0.5) > kept(1.0)


def random_tree(generator: torch.Generator, size: int) -> DraftTree:
    tree = DraftTree.root(0)
    for _ in range(size):
        parent = int(torch.randint(len(tree), (), generator=generator))
        token = int(torch.randint(4, (), generator=generator))
        hidden = tree.scored_only[parent] or bool(torch.rand((), generator=generator) < 0.2)
        tree.add(parent, token, scored_only=hidden)
    return tree


def test_greedy_is_acceptance_with_all_mass_on_one_token() -> None:
    generator = torch.Generator().manual_seed(0)
    depths = []
    for _ in range(200):
        tree = random_tree(generator, 12)
        argmax = torch.randint(4, (len(tree),), generator=generator).tolist()
        greedy = accept_greedy(tree, argmax)
        assert greedy == accept(
            tree, lambda node, best=argmax: one_hot(best[node], 4, torch.device("cpu")), ScriptedChance()
        )
        assert not any(tree.scored_only[node] for node in greedy[0])
        depths.append(len(greedy[0]))
    assert max(depths) > 3


def test_a_drawn_child_needs_the_row_it_was_drawn_from() -> None:
    tree = DraftTree.root(0)
    tree.add(0, 1, sampled=True)
    with pytest.raises(ValueError, match="not in the tree"):
        accept(tree, lambda node: torch.full((V,), 1 / V), ScriptedChance())


def test_residual_and_without() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.6, 0.3])
    assert residual(p, q).tolist() == [1, 0, 0]
    assert residual(p, p).tolist() == p.tolist()  # nothing is left: rounding, not a law
    assert without(p, 0).tolist() == pytest.approx([0, 0.6, 0.4])
    alone = torch.tensor([0.0, 1.0, 0.0])
    assert without(alone, 1).tolist() == alone.tolist()
    assert p.tolist() == pytest.approx([0.5, 0.3, 0.2])
