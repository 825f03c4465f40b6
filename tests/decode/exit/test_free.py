from __future__ import annotations

from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.exit.free import LONGEST, Free
from segue.laws.base import decode
from segue.laws.same_tokens import same_tokens
from segue.laws.tuned import tuned
from segue.laws.worlds import World, network_world

SETTINGS = Settings(max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def world() -> World:
    return tuned("llama", "free")


def test_a_tuned_model_exits_early_and_the_surer_it_must_be_the_later(world: World) -> None:
    deep = []
    for bar in (0.01, 0.5, 0.99, 1.0):
        (answer,) = decode(world.lm, Free(threshold=bar), world.prompts, SETTINGS)
        deep.append(answer.stats.rounds)
        assert len(answer.tokens) == 30
    assert deep == sorted(deep)
    assert deep[0] < 6
    assert deep[-1] == 29


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("bar", [0.02, 0.2])
def test_deep_rows_are_those_of_a_whole_forward_on_the_text(family: str, bar: float) -> None:
    """The property that copying states breaks: whatever was given out early, every deep row is exact."""
    lm = network_world(family).lm
    prompt, seen = network_world(family).prompts[1], []
    forward = lm.forward

    def listening(asks: Any) -> Any:
        scores = forward(asks)
        for (sequence, tree, want), mine in zip(asks, scores, strict=True):
            if want.states is not None:
                seen.append(([*sequence.tokens, *tree.tokens], mine.logits.clone()))
        return scores

    lm.forward = listening  # type: ignore[method-assign]
    try:
        decode(lm, Free(threshold=bar), [prompt], SETTINGS)
    finally:
        lm.forward = forward  # type: ignore[method-assign]
    assert any(len(logits) > 1 for _, logits in seen)
    for tokens, logits in seen:
        (whole,) = lm.forward([(lm.sequence(), DraftTree.chain(tokens), Want())])
        torch.testing.assert_close(logits, whole.logits[-len(logits) :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bar", [0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_lossless_mode_is_lossless(family: str, bar: float) -> None:
    plain = network_world(family)
    report = same_tokens(
        Free(threshold=bar, exact=True), plain.lm, plain.oracle, plain.prompts, Settings(max_tokens=20)
    )
    assert report.tokens > 50


def test_the_lossless_mode_saves_deep_forwards(world: World) -> None:
    (answer,) = decode(world.lm, Free(threshold=0.3, exact=True), world.prompts, SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens
    assert answer.stats.target_forwards < 12


def test_no_more_tokens_wait_than_may(world: World) -> None:
    (answer,) = decode(world.lm, Free(threshold=1e-9), world.prompts, SETTINGS)
    assert answer.stats.rounds >= 29 // (LONGEST + 1)


def test_the_exit_is_the_models_own(world: World) -> None:
    assert Free().layers(world.lm) == 1
    with pytest.raises(ValueError, match="exit=2 is not allowed"):
        Free(exit=2).layers(world.lm)


@pytest.mark.parametrize(("field", "value"), [("exit", -1), ("threshold", 1.5), ("zeta", -0.1)])
def test_bad_fields_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        Free(**{field: value})  # type: ignore[arg-type]
