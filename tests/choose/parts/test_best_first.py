"""The best-first driver and its pasts, against all texts of a table written down."""

from __future__ import annotations

import math
from typing import Any

import pytest

from segue.choose.parts.best_first import BestFirst, likeliest
from segue.choose.parts.hypothesis import first
from segue.choose.parts.pasts import Pasts
from segue.data import Settings
from segue.laws.worlds import World, network_world, toy_world
from segue.models.engine import Engine
from segue.models.run import Decoder, Run


def searched(world: World, prompt: list[int], settings: Settings, width: int = 99, **how: Any) -> BestFirst:
    """A search that has ended."""
    run = Run(world.lm, prompt, settings)
    search = BestFirst(run, lambda h: likeliest(run, h, width), **how)

    def decoder() -> Decoder[None]:
        yield from search.search((yield from first(run)))
        run.finish("length")

    engine = Engine()
    job = engine.add(run, decoder())
    engine.drain()
    if job.error is not None:
        raise job.error
    return search


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_found_in_the_order_of_their_probability(lanes: int, seed: int) -> None:
    world = toy_world(3, 2, seed)
    settings = Settings(max_tokens=5, temperature=1.0)
    law = world.oracle.law(world.prompts[-1], settings)
    found = searched(world, world.prompts[-1], settings, budget=10_000, results=20, lanes=lanes).finished
    best = sorted(law.values(), reverse=True)[:20]  # some texts are level, and may stand in either order
    assert len({tuple(h.tokens) for h in found}) == 20
    assert [law[tuple(h.tokens)] for h in found] == pytest.approx(best, rel=1e-5)
    assert [math.exp(h.logp) for h in found] == pytest.approx(best, rel=1e-5)


def test_lanes_share_forwards_and_one_lane_reads_the_fewest_texts() -> None:
    world = toy_world(3, None, 1)
    alone, wide = (
        searched(world, world.prompts[0], Settings(max_tokens=6), budget=10_000, results=8, lanes=lanes)
        for lanes in (1, 8)
    )
    assert [h.tokens for h in alone.finished] == [h.tokens for h in wide.finished]
    assert alone.calls <= wide.calls
    assert alone.run.stats.target_forwards == alone.calls + 1
    assert wide.run.stats.target_forwards < alone.calls / 2


def test_a_dive_finishes_the_greedy_text_first_and_beyond_the_budget() -> None:
    for name in ("llama", "t5", "gemma2"):
        world = network_world(name)
        for prompt in world.prompts:
            for budget, spent in ((1, 11), (30, 33), (60, 60)):
                search = searched(world, prompt, Settings(max_tokens=12), budget=budget, lanes=4, dive=True, width=3)
                greedy = world.oracle.answer(prompt, Settings(max_tokens=12)).tokens
                assert search.finished[0].tokens == greedy
                assert search.calls == spent


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "t5", "bart"])
def test_rows_are_those_of_the_texts_whichever_past_is_given_up(name: str) -> None:
    world = network_world(name)
    prompt = world.prompts[1]
    run = Run(world.lm, prompt, Settings(max_tokens=24))
    texts = [[5], [5, 9], [5, 9, 2], [5, 9, 7, 7], [5, 9, 2, 4], [8], [8, 8, 8], [5, 9, 7, 1], [8, 8, 8, 1], [5, 9, 2]]
    compared = []

    def decoder() -> Decoder[None]:
        root = yield from first(run)
        pasts = Pasts(run, 3)
        for start in range(0, len(texts), 2):
            pair = [root.child(run, tokens[0], 0.0) for tokens in texts[start : start + 2]]
            for hypothesis, tokens in zip(pair, texts[start : start + 2], strict=True):
                hypothesis.tokens[:] = tokens
            yield from pasts.read(pair)
            compared.extend((h.tokens, h.row) for h in pair)
        pasts.release()
        run.finish("length")

    engine = Engine()
    job = engine.add(run, decoder())
    engine.drain()
    assert job.error is None
    assert [tokens for tokens, _ in compared] == texts
    for tokens, row in compared:
        expected = world.oracle.logits_after(prompt, tokens)
        assert row is not None
        assert float((row - expected).abs().max()) < 1e-3
