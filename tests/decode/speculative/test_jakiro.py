from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.base import Budget
from segue.decode.speculative.jakiro import Jakiro
from segue.laws.base import decode
from segue.laws.worlds import World
from segue.models.heads.jakiro import JakiroNetwork, LeanJakiro
from segue.models.lm import LM

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


def drafter(world: World, **numbers: Any) -> JakiroNetwork:
    return JakiroNetwork.fresh(world.lm, inner=16, **numbers).eval().requires_grad_(False)


def states(lm: LM, ids: list[int]) -> Tensor:
    """(T, D) behind every token, from one forward."""
    (scores,) = lm.forward([(lm.sequence(), DraftTree.chain(ids), Want(logits="none", hidden=(-1,)))])
    return scores.hidden[-1].clone()


def said(lm: LM, network: JakiroNetwork, known: Tensor, ids: list[int]) -> tuple[Tensor, Tensor | None]:
    """Both outputs behind the last of `ids`, of which the model has read len(known): the training forward over the
    whole text, once for every drafted token, each guess entering as the state behind its token."""
    while True:
        entering = network.entering(lm, known, torch.tensor(ids[1 : len(known) + 1]))
        places = torch.arange(len(known))
        span = range(len(known))
        left, right = network(entering, span, network.attention.rows(entering, span), places[:, None] >= places)
        if len(known) == len(ids) - 1:
            return left[-1], None if right is None else right[-1]
        known = torch.cat([known, left[-1:]])


@pytest.mark.parametrize("experts", [1, 2])
@torch.no_grad()
def test_a_draft_says_what_the_training_forward_says_of_its_tokens(world: World, experts: int, first_tree: Any) -> None:
    network, prompt = drafter(world, experts=experts), world.prompts[0]
    tree = first_tree(world.lm, Jakiro(heads=network, depth=4, width=3, nodes=30), prompt, SETTINGS)
    known = states(world.lm, prompt)
    # The pending token is the model's own choice, so all of the prompt was read.
    assert max(tree.depths) == 4
    for node in range(1, len(tree)):
        path = [tree.tokens[i] for i in tree.path(node)]
        if tree.depths[node] == 4 and experts == 2:  # from the pass of the grandparent
            _, state = said(world.lm, network, known, [*prompt, *path[:-2]])
        else:
            state, _ = said(world.lm, network, known, [*prompt, *path[:-1]])
        assert state is not None
        p = world.lm.head(state).softmax(-1)
        assert float(p[path[-1]]) == pytest.approx(tree.score[node], abs=1e-4)


def test_the_tree_is_the_best_of_its_size(world: World, first_tree: Any) -> None:
    network, prompt = drafter(world), world.prompts[0]
    wide = first_tree(world.lm, Jakiro(heads=network, depth=3, width=4, nodes=64), prompt, SETTINGS)
    slim = first_tree(world.lm, Jakiro(heads=network, depth=3, width=4, nodes=9), prompt, SETTINGS)
    assert len(wide) > len(slim) == 10

    def paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
        found = {}
        for node in range(1, len(tree)):
            path = tree.path(node)[1:]
            found[tuple(tree.tokens[i] for i in path)] = float(torch.tensor([tree.score[i] for i in path]).prod())
        return found

    best = sorted(paths(wide).items(), key=lambda pair: -pair[1])[:9]
    assert set(paths(slim)) == {path for path, _ in best}


@pytest.mark.parametrize(("experts", "depth", "passes"), [(2, 1, 1), (2, 2, 1), (2, 5, 4), (1, 5, 5)])
def test_the_last_two_depths_take_one_pass(
    world: World, monkeypatch: pytest.MonkeyPatch, experts: int, depth: int, passes: int
) -> None:
    network, counted = drafter(world, experts=experts), []
    guesses = LeanJakiro.guesses

    def spy(self: LeanJakiro, *args: Any, **options: Any) -> Any:
        counted.append(1)
        return guesses(self, *args, **options)

    monkeypatch.setattr(LeanJakiro, "guesses", spy)
    settings = Settings(max_tokens=2 + depth, ignore_eos=True)
    drafted: list[int] = []

    class Once(Jakiro):
        def propose(self, *args: Any) -> Any:
            before = len(counted)
            tree = yield from super().propose(*args)
            drafted.append(len(counted) - before)
            assert max(tree.depths) == depth or len(drafted) > 1
            return tree

    decode(world.lm, Once(heads=network, depth=depth, width=3), world.prompts[:1], settings)
    assert drafted[0] == passes


@pytest.mark.parametrize(("least", "passes"), [(0.0, 4), (9.0, 2)])
def test_a_pass_that_promises_too_little_is_not_made(
    world: World, monkeypatch: pytest.MonkeyPatch, least: float, passes: int
) -> None:
    """The pass behind the first says how likely the text goes on in it: what follows is decided from there."""
    counted, rounds = list[int](), list[int]()
    guesses = LeanJakiro.guesses

    def spy(self: LeanJakiro, *args: Any) -> Any:
        counted.append(1)
        return guesses(self, *args)

    monkeypatch.setattr(LeanJakiro, "guesses", spy)

    class Once(Jakiro):
        def propose(self, run: Any, state: Any, budget: Budget) -> Any:
            counted.clear()
            tree = yield from super().propose(run, state, replace(budget, least=least))
            if budget.depth >= 5:
                rounds.append(len(counted))
            return tree

    decode(world.lm, Once(heads=drafter(world)), world.prompts[:1], SETTINGS)
    assert set(rounds) == {passes}


def test_sampled_requests_are_drafted_for_as_well(world: World, first_tree: Any) -> None:
    settings = Settings(max_tokens=24, ignore_eos=True, temperature=1.0, seed=1)
    tree = first_tree(world.lm, Jakiro(heads=drafter(world)), world.prompts[0], settings)
    assert len(tree) == 60
    assert not any(tree.sampled)


@pytest.mark.parametrize("field", ["depth", "width", "nodes"])
def test_bad_fields_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is not allowed"):
        Jakiro(**{field: 0})  # type: ignore[arg-type]
