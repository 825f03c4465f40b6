from __future__ import annotations

import itertools

import pytest
import torch

from segue.data import DraftTree, Settings
from segue.decode.speculative.base import Budget
from segue.decode.speculative.mlp_speculator import MLPSpeculator
from segue.laws.worlds import World
from segue.models.heads.lesson import Lesson
from segue.models.heads.speculator import Speculator
from segue.models.run import Run

WIDE = Budget(nodes=100, depth=100)


@pytest.fixture
def speculator(world: World) -> Speculator:
    return Speculator.fresh(world.lm, stages=3, inner=16).requires_grad_(False)


def proposal(world: World, method: MLPSpeculator, hidden: torch.Tensor) -> DraftTree:
    run = Run(world.lm, world.prompts[0], Settings())
    state = method.start(run)
    state._hidden, state._length = hidden, len(run.ids)
    tree = method.propose(run, state, WIDE)
    assert isinstance(tree, DraftTree)
    return tree


def logp(network: Speculator, hidden: torch.Tensor, tokens: list[int]) -> float:
    """Of the tokens behind the first, stage by stage."""
    states, total = network.begin(hidden[None]), 0.0
    for stage, (before, token) in enumerate(itertools.pairwise(tokens)):
        states, logits = network(stage, states, torch.tensor([before]))
        total += float(logits.log_softmax(-1)[0, token])
    return total


def test_the_tree_holds_the_best_paths(world: World, speculator: Speculator) -> None:
    hidden = torch.randn(world.lm.width)
    tree = proposal(world, MLPSpeculator(heads=speculator, expand="3,2,2", candidates=4), hidden)
    pending = world.prompts[0][-1]

    def best(tokens: list[int], stage: int, count: int) -> list[int]:
        scored = [(logp(speculator, hidden, [*tokens, t]), t) for t in range(world.lm.vocab_size)]
        return [t for _, t in sorted(scored, reverse=True)[:count]]

    paths = [[pending]]
    for stage, count in enumerate((3, 2, 2)):
        paths = [[*path, token] for path in paths for token in best(path, stage, count)]
    paths.sort(key=lambda path: -logp(speculator, hidden, path))
    drafted = {tuple(tree.tokens[i] for i in tree.path(leaf)) for leaf in tree.leaves()}
    assert drafted == {tuple(path) for path in paths[:4]}
    assert tree.tokens[0] == pending


def test_a_single_candidate_is_the_greedy_path_of_training(world: World, speculator: Speculator) -> None:
    """What the stages are trained to say of given tokens is what they say when they draft these tokens."""
    hidden = torch.randn(world.lm.width)
    tree = proposal(world, MLPSpeculator(heads=speculator, expand="1,1,1", candidates=1), hidden)
    ids = torch.tensor([[7, *tree.tokens]])
    own = torch.tensor([[False, True, True, True, True]])
    states = torch.zeros(1, 5, world.lm.width)
    states[0, 0] = hidden
    for place, loss in enumerate(speculator.learn(world.lm, Lesson(ids, own, {-1: states})).losses):
        # Of the three states of the text only the first is one; the guesses behind it are those of the draft.
        assert loss.isfinite(), place
    only = Lesson(ids[:, :3], own[:, :3], {-1: states[:, :3]})
    (loss, *_) = speculator.learn(world.lm, only).losses
    assert float(loss) == pytest.approx(-logp(speculator, hidden, tree.tokens[:2]), abs=1e-5)


def test_the_chosen_token_matters(world: World, speculator: Speculator) -> None:
    states = speculator.begin(torch.randn(1, world.lm.width))
    _, one = speculator(0, states, torch.tensor([1]))
    _, other = speculator(0, states, torch.tensor([2]))
    assert not torch.allclose(one, other)


def test_tied_stages_share_their_weights(world: World) -> None:
    apart = sum(p.numel() for p in Speculator.fresh(world.lm, stages=3, inner=16).parameters())
    tied = sum(p.numel() for p in Speculator.fresh(world.lm, stages=3, inner=16, tied=True).parameters())
    vocab = world.lm.vocab_size * 16
    assert apart - tied == 2 * (2 * vocab + 2 * 16) + 16 * 16


@pytest.mark.parametrize(("field", "value"), [("expand", "5,0"), ("expand", "many"), ("candidates", 0)])
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}='?{value}'? is not allowed"):
        MLPSpeculator(**{field: value})  # type: ignore[arg-type]
