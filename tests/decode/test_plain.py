from __future__ import annotations

import torch

from segue.data import Settings
from segue.decode.plain import Plain
from segue.laws.base import decode
from segue.laws.worlds import World, toy_world


def test_one_forward_per_token(world: World) -> None:
    (answer,) = decode(world.lm, Plain(), [world.prompts[1]], Settings(max_tokens=9))
    assert len(answer.tokens) == 9
    # The prompt's forward gives the first token, and the last token needs none.
    assert (answer.stats.target_forwards, answer.stats.prefill_forwards) == (9, 1)
    assert answer.stats.tokens_per_forward == 1
    assert (answer.stats.drafted, answer.stats.acceptance) == (0, None)


def test_samples_follow_a_seed_in_any_company(world: World) -> None:
    settings = Settings(max_tokens=16, temperature=1.0, seed=3)
    (alone,) = decode(world.lm, Plain(), [world.prompts[1]], settings)
    crowd = decode(world.lm, Plain(), world.prompts, settings)
    assert crowd[1].tokens == alone.tokens
    (other,) = decode(world.lm, Plain(), [world.prompts[1]], Settings(max_tokens=16, temperature=1.0, seed=4))
    assert other.tokens != alone.tokens


def test_a_colder_sample_is_likelier() -> None:
    world = toy_world(4)

    def mean_logit(temperature: float) -> float:
        settings = Settings(max_tokens=200, temperature=temperature, seed=0)
        (answer,) = decode(world.lm, Plain(), [[0]], Settings(**{**vars(settings), "max_tokens": 60}))
        text = [0, *answer.tokens]
        rows = [world.lm.logits_after(text[:i])[text[i]] for i in range(1, len(text))]  # type: ignore[attr-defined]
        return float(torch.stack(rows).mean())

    assert mean_logit(0.3) > mean_logit(3.0)
