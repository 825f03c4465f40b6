from __future__ import annotations

from typing import Any

import pytest

from segue.data import DraftTree, Settings
from segue.decode.speculative.base import Budget
from segue.decode.speculative.space import Space
from segue.laws.base import decode
from segue.laws.tuned import MASK, tuned
from segue.laws.worlds import World, network_world
from segue.models.run import Run

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


def tree_of(world: World, rows: int) -> DraftTree:
    run = Run(world.lm, world.prompts[0], Settings())
    method = Space(k=3, mask=7)
    state = method.start(run)
    state.rows = [world.oracle.logits_after(world.prompts[0], []) for _ in range(rows)]
    proposal: Any = method.propose(run, state, Budget(100, 100))
    with pytest.raises(StopIteration) as end:
        next(proposal)
    tree: DraftTree = end.value.value
    return tree


def test_every_candidate_has_a_group_of_masks_that_sees_nothing_behind_it(world: World) -> None:
    tree = tree_of(world, 2)
    assert len(tree) == 3 + 3 * 3
    assert tree.scored_only == [False] * 3 + [True] * 9
    assert tree.tokens[3:] == [7] * 9
    seen = tree.ancestors()
    for candidate in range(3):
        for place in range(3):
            node = 3 + 3 * candidate + place
            visible = [i for i in range(len(tree)) if seen[node, i]]
            assert visible == [*range(candidate + 1), *range(3 + 3 * candidate, node + 1)]
            assert tree.depths[node] == candidate + 1 + place


def test_a_tuned_model_is_faster_than_one_token_a_forward() -> None:
    world = tuned("llama", "space")
    (answer,) = decode(world.lm, Space(), world.prompts, SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens
    assert answer.stats.target_forwards < 16
    assert answer.stats.acceptance is not None
    assert answer.stats.acceptance > 0.3


def test_the_mask_is_the_models_own_or_given() -> None:
    world = tuned("llama", "space")
    assert Space().start(Run(world.lm, world.prompts[0], Settings())).mask == MASK
    assert not Space().lacks(world.lm)
    plain = network_world("llama")
    assert "segue train space" in Space().lacks(plain.lm)
    with pytest.raises(ValueError, match="was not tuned for space"):
        decode(plain.lm, Space(), plain.prompts, SETTINGS)


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("mask", -2)])
def test_bad_fields_are_named(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        Space(**{field: value})
