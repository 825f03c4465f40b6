from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segue.data import Settings
from segue.decode.speculative.eesd import EESD
from segue.laws.base import decode
from segue.laws.drafters import pupil
from segue.laws.suite import repetitive
from segue.laws.worlds import World
from segue.models.heads.exit import ExitLayer
from segue.models.lm import LM

SETTINGS = Settings(max_tokens=16, ignore_eos=True)
Listen = Callable[[LM], Any]


def test_a_draft_is_verified_by_the_other_layers_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ran = world.lm.forward, []

    def forward(asks: Any) -> Any:
        ran.extend((want.layers, len(tree), want.states is not None) for _, tree, want in asks)
        return real(asks)

    monkeypatch.setattr(world.lm, "forward", forward)
    method = EESD(heads=pupil(world.lm, ExitLayer, 150), gamma=3, budget="fixed")
    (answer,) = decode(world.lm, method, [repetitive(world)], SETTINGS)
    assert answer.tokens == world.oracle.answer(repetitive(world), SETTINGS).tokens
    drafts = [one for one in ran if one[0] == (0,)]
    resumed = [one for one in ran if one[0] == (1,)]
    assert all(size == 1 and not given for _, size, given in drafts)
    assert resumed
    assert all(given for _, _, given in resumed)
    # Every drafted token, and the pending one, is read by the first layer once and by the second once.
    assert len(drafts) == sum(size for _, size, _ in resumed)
    assert answer.stats.draft_forwards == len(drafts)
    assert answer.stats.target_forwards < answer.stats.tokens


def test_the_states_that_are_kept_are_those_of_whole_forwards(world: World, listen: Listen) -> None:
    """Where rounds are drafted or plain, the trained layer's context is what the model computes."""
    method = EESD(heads=pupil(world.lm, ExitLayer, 10), gamma=2, budget="fixed")
    seen: list[Any] = []
    observe = EESD.observe

    def watching(self: EESD, run: Any, state: Any, outcome: Any) -> None:
        observe(self, run, state, outcome)
        seen.append((list(run.sequence.tokens), state.length, state._states[: state.length].clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EESD, "observe", watching)
        decode(world.lm, method, [world.prompts[1]], SETTINGS)
    from segue.data import DraftTree, Want

    tokens, length, states = seen[-1]
    assert length == len(tokens)
    (scores,) = world.lm.forward([(world.lm.sequence(), DraftTree.chain(tokens), Want(hidden=(1,)))])
    torch.testing.assert_close(states, scores.hidden[1], atol=1e-4, rtol=1e-4)


def test_the_length_follows_what_is_accepted(world: World) -> None:
    good = decode(world.lm, EESD(heads=pupil(world.lm, ExitLayer, 150)), [repetitive(world)], Settings(max_tokens=40))
    bad = decode(world.lm, EESD(heads=ExitLayer.fresh(world.lm).eval()), [repetitive(world)], Settings(max_tokens=40))
    assert good[0].tokens == bad[0].tokens
    assert good[0].stats.acceptance is not None
    assert bad[0].stats.drafted < good[0].stats.drafted + 40
    assert good[0].stats.target_forwards < bad[0].stats.target_forwards


def test_an_exit_behind_the_last_layer_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="exit=2 is not allowed"):
        ExitLayer.fresh(world.lm, exit=2)
    with pytest.raises(ValueError, match="gamma=0 is not allowed"):
        EESD(gamma=0)
