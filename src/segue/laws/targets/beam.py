"""The target of beam search: what transformers' own beam search finds, and the best of all texts where the beam is wide
enough to hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.worlds import World

TOKENS = 16
CLOSE = 1e-4
EARLY = {"heuristic": False, "full": True, "never": "never"}


def hold(method: Any, world: World, *, briefly: bool = False) -> dict[str, float]:
    """Every candidate with its score on a network; the optimum on a table. Raises LawBroken. `briefly` leaves out the
    edges and most prompts."""
    if isinstance(world.oracle, TableOracle):
        return {"texts": sum(_optimum(method, world, Settings(max_tokens=n)) for n in (1, 3, 4))}
    assert isinstance(world.oracle, NetworkOracle)
    forms = [{}, {"beams": 3, "length_penalty": 0.0, "early": "never"}, {"length_penalty": 2.0, "early": "full"}]
    compared = 0
    for prompt in world.prompts[: 1 if briefly else 3]:
        text = world.oracle.answer(prompt, Settings(max_tokens=TOKENS)).tokens
        for form in forms:
            for eos in (frozenset[int](), frozenset([text[2], text[-1]])):
                with ending_at(world.lm, eos):
                    compared += _compare(replace(method, **form), world, prompt, Settings(max_tokens=TOKENS))
    # transformers' beam search knows no automata: constraints have tests of their own.
    free = [e for e in edges(world.lm, world.oracle, world.prompts[0]) if e.settings.constraint is None]
    for edge in [] if briefly else free:
        with ending_at(world.lm, edge.eos):
            compared += _compare(method, world, edge.prompt, edge.settings)
    return {"tokens": compared}


def _compare(method: Any, world: World, prompt: list[int], settings: Settings) -> int:
    assert isinstance(world.oracle, NetworkOracle)
    alone = decode(world.lm, method, [prompt], settings)[0]
    together = decode(world.lm, method, [prompt, *world.prompts], settings)[0]
    expected = world.oracle.beams(
        prompt,
        settings,
        num_beams=method.beams,
        length_penalty=method.length_penalty,
        early_stopping=EARLY[method.early],
    )
    for answer in (alone, together):
        assert answer.candidates is not None
        found = [(c.tokens, c.score) for c in answer.candidates]
        texts = [text for text, _ in expected]
        # Two texts of nearly one score may stand in either order.
        same = all(text in texts for text, _ in found) and len(found) == len(expected)
        apart = max((abs(mine - theirs) for (_, mine), (_, theirs) in zip(found, expected, strict=False)), default=0.0)
        if not same or apart > CLOSE:
            raise LawBroken(f"{method} on {prompt}: {found} where transformers finds {expected}")
        if answer.tokens != found[0][0]:
            raise LawBroken(f"{method} gives {answer.tokens}, and its best candidate is {found[0][0]}")
    return len(alone.tokens)


def _optimum(method: Any, world: World, settings: Settings) -> int:
    """A beam of all texts, ranked by the plain sum, has the likeliest text in front."""
    prompt = world.prompts[-1]
    size = (world.lm.vocab_size + 1) ** settings.max_tokens
    wide = replace(method, beams=size, length_penalty=0.0, early="never")
    (answer,) = decode(world.lm, wide, [prompt], settings)
    assert isinstance(world.oracle, TableOracle)
    law = world.oracle.law(prompt, replace(settings, temperature=1.0))
    if law[tuple(answer.tokens)] < max(law.values()) - 1e-12:
        raise LawBroken(f"{wide}: {answer.tokens} is not the likeliest text, {max(law, key=lambda t: law[t])} is")
    return len(law)
