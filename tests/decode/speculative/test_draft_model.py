from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segue.data import Settings
from segue.decode.plain import Plain
from segue.decode.speculative.draft_model import DraftModel
from segue.laws.base import decode
from segue.laws.oracle import NetworkOracle
from segue.laws.worlds import World, neighbour, toy_world
from segue.models.lm import LM
from segue.models.toy import ToyLM

Listen = Callable[[LM], Any]


@pytest.mark.parametrize("gamma", [1, 3, 5])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_perfect_draft_is_accepted_whole(gamma: int, temperature: float, world: World) -> None:
    settings = Settings(max_tokens=1 + 4 * (gamma + 1), temperature=temperature, seed=0)
    (answer,) = decode(world.lm, DraftModel(draft=world.lm, gamma=gamma), [world.prompts[1]], settings)
    assert answer.stats.acceptance == 1
    assert answer.stats.accepted == 4 * gamma
    # gamma + 1 tokens a round, behind the first token, which the prompt gives.
    assert answer.stats.target_forwards == 1 + 4
    assert answer.stats.draft_forwards == 4 * gamma


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_draft_never_reads_a_text_twice(temperature: float, world: World, listen: Listen) -> None:
    draft = neighbour(world.lm)
    heard = listen(draft)
    settings = Settings(max_tokens=40, temperature=temperature, seed=1)
    (answer,) = decode(world.lm, DraftModel(draft=draft, gamma=3), [world.prompts[1]], settings)
    assert 0 < answer.stats.accepted < answer.stats.drafted
    sizes = [len(tree) for tree in heard.trees[1:]]  # the first reads the prompt
    # Two tokens only behind a draft that was accepted whole, one everywhere else.
    assert set(sizes) == {1, 2}
    for past, tree in zip(heard.pasts, heard.trees, strict=True):
        text = [*world.prompts[1], *answer.tokens]
        agreed = next((i for i, (a, b) in enumerate(zip(past, text, strict=False)) if a != b), len(past))
        # What it keeps is the text, up to the tokens it is drafting right now.
        assert len(past) - agreed <= 3
        assert len(tree) <= 2 or not past


def test_the_kept_rows_are_those_of_the_draft(world: World, listen: Listen) -> None:
    """Every q in a tree is the draft model's own distribution after that prefix, warped like the target's."""
    draft = neighbour(world.lm)
    oracle = NetworkOracle(draft)  # type: ignore[arg-type]
    heard = listen(world.lm)
    settings = Settings(max_tokens=14, temperature=0.9, top_k=12, seed=2)
    decode(world.lm, DraftModel(draft=draft, gamma=3), [world.prompts[1]], settings)
    rows = 0
    for past, tree in zip(heard.pasts, heard.trees, strict=True):
        for node, q in tree.q.items():
            text = past + [tree.tokens[i] for i in tree.path(node)]
            logits = oracle.answer(text, Settings(max_tokens=1)).logits[0] / 0.9
            logits[logits < logits.topk(12).values[-1]] = float("-inf")
            assert torch.allclose(q, logits.softmax(-1), atol=1e-5)
            rows += 1
    assert rows > 8


def test_seeds_reproduce(world: World) -> None:
    method = DraftModel(draft=neighbour(world.lm), gamma=3)

    def sample(seed: int) -> list[int]:
        return decode(world.lm, method, [world.prompts[2]], Settings(max_tokens=24, temperature=1.0, seed=seed))[
            0
        ].tokens

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


def test_lenience_changes_samples_only(world: World) -> None:
    lenient = DraftModel(draft=neighbour(world.lm), gamma=3, lenience=0.1)
    strict = DraftModel(draft=neighbour(world.lm), gamma=3)
    greedy = Settings(max_tokens=24)
    (plain,) = decode(world.lm, Plain(), [world.prompts[1]], greedy)
    assert decode(world.lm, lenient, [world.prompts[1]], greedy)[0].tokens == plain.tokens
    sampled = Settings(max_tokens=40, temperature=1.0, seed=0)
    kept = [decode(world.lm, m, [world.prompts[1]], sampled)[0].stats.acceptance or 0 for m in (lenient, strict)]
    assert kept[0] > kept[1]


def test_another_vocabulary_is_refused() -> None:
    world = toy_world(3)
    with pytest.raises(ValueError, match="cannot draft for toy-3-2-0: 4 tokens against 3"):
        decode(world.lm, DraftModel(draft=ToyLM(4)), [[0]], Settings(max_tokens=4))


def test_a_model_without_a_draft_says_so(world: World) -> None:
    with pytest.raises(ValueError, match="has no draft model of its own: name one with draft=PATH"):
        decode(world.lm, DraftModel(), [[0]], Settings(max_tokens=4))


def test_a_draft_with_a_shorter_context_stops_drafting(world: World) -> None:
    draft = neighbour(world.lm)
    draft.context_length = len(world.prompts[1]) + 12
    settings = Settings(max_tokens=30)
    (answer,) = decode(world.lm, DraftModel(draft=draft, gamma=4), [world.prompts[1]], settings)
    assert answer.tokens == world.oracle.answer(world.prompts[1], settings).tokens
    assert 0 < answer.stats.drafted <= 4 * 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 0}, "gamma=0 is not allowed: at least 1"),
        ({"lenience": 0.0}, "lenience=0.0 is not allowed"),
        ({"lenience": 1.5}, r"lenience=1.5 is not allowed: above 0 and at most 1"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraftModel(**fields)
