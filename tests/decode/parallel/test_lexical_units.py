from __future__ import annotations

import pytest

from segue.data import CapabilityError, Settings
from segue.decode.parallel.lexical_units import LexicalUnits
from segue.laws.base import decode
from segue.laws.tuned import tuned
from segue.laws.worlds import network_world
from segue.models.tuning.lexical_units import units


def test_a_tuned_model_writes_several_tokens_at_once_and_surer_ones_are_fewer() -> None:
    world = tuned("llama", "lexical_units")
    settings = Settings(max_tokens=24, ignore_eos=True)
    plain = world.oracle.answer(world.prompts[0], settings).tokens
    forwards = []
    for beta in (0.0, 0.5, 0.95, 1.0):
        (answer,) = decode(world.lm, LexicalUnits(beta=beta), world.prompts, settings)
        forwards.append(answer.stats.target_forwards)
        assert len(answer.tokens) == 24
        if beta >= 0.5:  # the text was learned by heart: what is sure is right
            assert answer.tokens == plain
    assert forwards == sorted(forwards)
    assert forwards[1] < 16
    assert forwards[-1] == 24


def test_a_token_that_repeats_the_one_before_it_is_not_kept() -> None:
    world = network_world("gpt2")
    (answer,) = decode(world.lm, LexicalUnits(beta=0.0, mask=3), world.prompts[:1], Settings(max_tokens=24))
    repeats = sum(a == b for a, b in zip(answer.tokens, answer.tokens[1:], strict=False))
    assert repeats <= answer.stats.target_forwards  # only the first of a forward may


def test_units_are_runs_of_sure_tokens_of_a_bounded_length() -> None:
    import torch

    sure = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1], [0] * 11]).bool()
    assert units(sure, 3) == [[(1, 2), (6, 3), (9, 2)], []]


def test_a_model_that_was_not_tuned_is_refused_with_the_way_out() -> None:
    world = network_world("llama")
    with pytest.raises(ValueError, match="was not tuned for lexical_units: tune it with segue train lexical_units"):
        decode(world.lm, LexicalUnits(), world.prompts, Settings(max_tokens=4))
    assert "segue train lexical_units" in LexicalUnits().lacks(world.lm)
    with pytest.raises(ValueError, match="mask=96 is not in the vocabulary"):
        decode(world.lm, LexicalUnits(mask=96), world.prompts, Settings(max_tokens=4))
    with pytest.raises(CapabilityError, match="is an encoder-decoder"):
        decode(network_world("t5").lm, LexicalUnits(mask=1), world.prompts, Settings(max_tokens=4))


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("beta", 1.5), ("beta", -0.1)])
def test_bad_fields_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        LexicalUnits(**{field: value})  # type: ignore[arg-type]
