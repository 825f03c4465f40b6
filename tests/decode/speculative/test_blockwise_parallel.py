from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.blockwise_parallel import BlockwiseParallel
from segue.laws.base import decode
from segue.laws.worlds import World
from segue.models.heads.blockwise import BlockwiseHeads

HEADS = 3
SETTINGS = Settings(max_tokens=24, ignore_eos=True)


class Knowing(BlockwiseHeads):
    """Heads that know the text: they look for the state in it, and say what follows."""

    def __init__(self, shape: Any, world: World, ids: list[int]) -> None:
        super().__init__(shape)
        (scores,) = world.lm.forward([(world.lm.sequence(), DraftTree.chain(ids), Want(hidden=(-1,)))])
        self.known, self.ids = scores.hidden[-1].clone(), ids
        self.wrong = 0

    def forward(self, states: Tensor) -> Tensor:
        place = int((self.known - states[0]).norm(dim=-1).argmin())
        return torch.tensor([[float(self.said(place + 2 + head))] for head in range(HEADS)])

    def said(self, place: int) -> int:
        token = self.ids[min(place, len(self.ids) - 1)]
        return (token + self.wrong) % 96


@pytest.fixture
def knowing(world: World, monkeypatch: pytest.MonkeyPatch) -> Knowing:
    prompt = world.prompts[0]
    text = world.oracle.answer(prompt, Settings(max_tokens=32, ignore_eos=True)).tokens
    made = Knowing(BlockwiseHeads.shape_type(world.lm.width, world.lm.vocab_size, heads=HEADS), world, [*prompt, *text])
    # What these heads give is no state but the token itself.
    rows = torch.eye(world.lm.vocab_size)
    monkeypatch.setattr(world.lm, "head", lambda said: rows[said.long().flatten()])
    return made


def test_heads_that_know_give_whole_blocks(world: World, knowing: Knowing) -> None:
    (answer,) = decode(world.lm, BlockwiseParallel(heads=knowing), world.prompts[:1], SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens
    stats = answer.stats
    # The prompt's forward gives one token, and every round one more than the heads guess.
    assert stats.target_forwards - stats.prefill_forwards == -(-(24 - 1) // (HEADS + 1))
    assert stats.accepted == stats.drafted


def test_heads_that_err_cost_rounds_and_no_token(world: World, knowing: Knowing) -> None:
    knowing.wrong = 1
    (answer,) = decode(world.lm, BlockwiseParallel(heads=knowing), world.prompts[:1], SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens
    assert answer.stats.accepted == 0
    assert answer.stats.target_forwards - answer.stats.prefill_forwards == 24 - 1


@pytest.mark.parametrize("relaxed", [{"top": 96}, {"distance": 95}, {"least": HEADS + 1}])
def test_relaxed_acceptance_at_its_limit_takes_every_guess(
    world: World, knowing: Knowing, relaxed: dict[str, int]
) -> None:
    knowing.wrong = 1
    (answer,) = decode(world.lm, BlockwiseParallel(heads=knowing, **relaxed), world.prompts[:1], SETTINGS)
    assert answer.stats.accepted == answer.stats.drafted
    assert answer.stats.target_forwards - answer.stats.prefill_forwards == -(-(24 - 1) // (HEADS + 1))
    assert answer.tokens != world.oracle.answer(world.prompts[0], SETTINGS).tokens


def test_a_near_miss_is_taken_within_its_distance_only(world: World, knowing: Knowing) -> None:
    knowing.wrong = 2
    (strict,) = decode(world.lm, BlockwiseParallel(heads=knowing, distance=1), world.prompts[:1], SETTINGS)
    assert strict.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens
    (relaxed,) = decode(world.lm, BlockwiseParallel(heads=knowing, distance=2), world.prompts[:1], SETTINGS)
    assert relaxed.stats.accepted > 0


@pytest.mark.parametrize("field", [{"top": 0}, {"distance": -1}, {"least": 0}])
def test_bad_fields_are_named(field: dict[str, int]) -> None:
    (name,) = field
    with pytest.raises(ValueError, match=f"{name}=-?{abs(field[name])} is not allowed"):
        BlockwiseParallel(**field)


def test_untrained_heads_say_what_the_model_says(world: World) -> None:
    heads = BlockwiseHeads.fresh(world.lm, heads=2)
    states = torch.randn(5, world.lm.width)
    assert torch.equal(heads(states), states.expand(2, 5, -1))
