from __future__ import annotations

import math

import pytest
import torch

from segue.data import Settings
from segue.decode.speculative.base import Budget
from segue.decode.speculative.blockwise_drafts import BACK_OFF, BlockwiseDrafts
from segue.laws.base import decode
from segue.laws.drafters import pupil
from segue.laws.suite import repetitive
from segue.laws.worlds import World
from segue.models.heads.blockwise import BlockwiseHeads
from segue.models.run import Run

SETTINGS = Settings(max_tokens=24, ignore_eos=True)
WIDE = Budget(100, 100)


def test_the_text_is_counted_with_a_back_off(world: World) -> None:
    run = Run(world.lm, [1, 2, 3, 1, 2, 4, 1, 2, 3], Settings())
    state = BlockwiseDrafts(heads=BlockwiseHeads.fresh(world.lm)).start(run)
    state.count(run)
    assert state.logp((1, 2), 3, 96) == pytest.approx(math.log(2 / 3))
    assert state.logp((1, 2), 4, 96) == pytest.approx(math.log(1 / 3))
    assert state.logp((4, 2), 3, 96) == pytest.approx(math.log(BACK_OFF * 2 / 3))  # 4 2 was never seen, 2 was
    assert state.logp((1, 2), 9, 96) == pytest.approx(math.log(BACK_OFF**2 * 1 / (9 + 96)))


def test_an_ngram_model_changes_what_the_heads_alone_would_draft(world: World) -> None:
    """Heads that say the same at every place repeat a token; a text that never does, does not."""
    prompt = [5, 17, 60, 5, 17, 60, 5, 17, 60, 5]
    run = Run(world.lm, prompt, Settings())
    heads = BlockwiseHeads.fresh(world.lm, heads=2)  # untrained: at every place the model's own next token
    likely = torch.zeros(96)
    likely[17], likely[60] = 5.0, 4.9
    drafted = {}
    for by in ("paths", "ngram"):
        method = BlockwiseDrafts(heads=heads, by=by, top=2, paths=1, weight=1.0)
        state = method.start(run)
        state._hidden, state._length = torch.zeros(world.lm.width), len(run.ids)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.lm, "head", lambda states: likely.expand(len(states), -1))
            tree = method.propose(run, state, WIDE)
        drafted[by] = tree.tokens[1:]  # type: ignore[union-attr]
    assert drafted == {"paths": [17, 17], "ngram": [17, 60]}


@pytest.mark.parametrize("by", ["ngram", "paths", "neural"])
def test_every_way_gives_the_models_own_text_in_fewer_forwards(world: World, by: str) -> None:
    prompt = repetitive(world)
    draft = world.lm if by == "neural" else None
    method = BlockwiseDrafts(heads=pupil(world.lm, BlockwiseHeads, 150), by=by, draft=draft)
    (answer,) = decode(world.lm, method, [prompt], SETTINGS)
    assert answer.tokens == world.oracle.answer(prompt, SETTINGS).tokens
    assert answer.stats.target_forwards < 16


def test_a_good_small_model_mends_what_poor_heads_say(world: World) -> None:
    heads = pupil(world.lm, BlockwiseHeads, 10)
    accepted = {}
    for by, draft in (("paths", None), ("neural", world.lm)):
        method = BlockwiseDrafts(heads=heads, by=by, paths=1, top=16, weight=10.0, draft=draft)
        answers = decode(world.lm, method, world.prompts, SETTINGS)
        accepted[by] = sum(answer.stats.accepted for answer in answers)
    assert accepted["neural"] > accepted["paths"]


@pytest.mark.parametrize(("field", "value"), [("by", "magic"), ("top", 0), ("paths", 0), ("weight", -1.0)])
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}='?{value}'? is not allowed"):
        BlockwiseDrafts(**{field: value})  # type: ignore[arg-type]
