from __future__ import annotations

from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.chimera import Chimera
from segue.laws.worlds import World
from segue.models.heads.chimera import ChimeraNetwork
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


def drafter(world: World, **numbers: Any) -> ChimeraNetwork:
    made = ChimeraNetwork.fresh(world.lm, heads=3, inner=16, **numbers).eval().requires_grad_(False)
    made.up.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return made


def states(lm: LM, ids: list[int]) -> torch.Tensor:
    """(T, D) behind every token, from one forward."""
    (scores,) = lm.forward([(lm.sequence(), DraftTree.chain(ids), Want(logits="none", hidden=(-1,)))])
    return scores.hidden[-1].clone()


@pytest.mark.parametrize("numbers", [{}, {"near": True}, {"grams": 1}])
def test_a_draft_says_what_training_says_of_its_tokens(world: World, numbers: dict[str, Any], first_tree: Any) -> None:
    """Every node's probability, in a tree and from rows that were kept, is that of the whole text read at once."""
    network, prompt = drafter(world, **numbers), world.prompts[0]
    tree = first_tree(world.lm, Chimera(heads=network, widths="3,5,4"), prompt, SETTINGS)
    assert len(tree) == 1 + 3 + 5 + 4
    assert max(tree.depths) == 3
    for node in range(1, len(tree)):
        text = [*prompt, *(tree.tokens[i] for i in tree.path(node))]
        own = torch.tensor([[False] * (len(text) - 1) + [True]])
        lesson = Lesson(torch.tensor([text]), own, {-1: states(world.lm, text)[None]})
        with torch.no_grad():
            loss = network.learn(world.lm, lesson).losses[tree.depths[node] - 1]
        assert float((-loss).exp()) == pytest.approx(tree.score[node], abs=1e-4)


def test_the_tree_holds_the_best_of_every_depth(world: World, first_tree: Any) -> None:
    network, prompt = drafter(world), world.prompts[0]
    wide = first_tree(world.lm, Chimera(heads=network, widths="3,96"), prompt, SETTINGS)
    slim = first_tree(world.lm, Chimera(heads=network, widths="3,4"), prompt, SETTINGS)

    def second(tree: DraftTree) -> dict[tuple[int, ...], float]:
        found = {}
        for node in range(1, len(tree)):
            if tree.depths[node] == 2:
                path = tree.path(node)[1:]
                found[tuple(tree.tokens[i] for i in path)] = tree.score[path[0]] * tree.score[path[1]]
        return found

    best = sorted(second(wide).items(), key=lambda pair: -pair[1])[:4]
    assert set(second(slim)) == {path for path, _ in best}


@pytest.mark.parametrize("widths", ["", "4,0", "many"])
def test_bad_fields_are_named(widths: str) -> None:
    with pytest.raises(ValueError, match=f"widths='{widths}' is not allowed"):
        Chimera(widths=widths)
