"""The target of dynamic beam allocation: beam search where no phrase is asked for; where some are, the likeliest text
that has them, if the beam is wide enough; and always texts that have them, at the model's own log-probability."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.targets import beam
from segue.laws.worlds import World
from segue.models.run import Run

TOKENS = 12
CLOSE = 1e-3


def hold(method: Any, world: World) -> dict[str, float]:
    """Raises LawBroken."""
    found = beam.hold(method, world, briefly=True)
    if isinstance(world.oracle, TableOracle):
        return {"texts": found["texts"] + _optimum(method, world)}
    assert isinstance(world.oracle, NetworkOracle)
    compared = 0
    for prompt in world.prompts[1:]:
        free = world.oracle.answer(prompt, Settings(max_tokens=TOKENS)).tokens
        strange = [(t + 7) % world.lm.vocab_size for t in free]
        # A phrase that repeats itself, one token, and as many phrases as the beam has places.
        for phrases in ([strange[:1] * 2 + strange[1:2]], [strange[2:3]], [[t] for t in dict.fromkeys(strange[:5])]):
            for eos in (world.lm.eos_ids, frozenset([free[1]]) - {t for p in phrases for t in p}):
                with ending_at(world.lm, eos):
                    compared += _contains(replace(method, phrases=phrases), world, prompt)
    return {"tokens": found["tokens"] + compared}


def _contains(method: Any, world: World, prompt: list[int]) -> int:
    settings = Settings(max_tokens=TOKENS)
    alone, together = (decode(world.lm, method, batch, settings)[0] for batch in ([prompt], [prompt, *world.prompts]))
    assert alone.candidates
    assert together.candidates
    if alone.tokens != together.tokens:
        raise LawBroken(f"{method} on {prompt}: {alone.tokens} alone, {together.tokens} in a batch")
    for candidate in alone.candidates:
        for phrase in method.phrases:
            if not has(candidate.tokens, phrase):
                raise LawBroken(f"{method} on {prompt}: {candidate.tokens} has no {phrase}")
    best = alone.candidates[0]
    expected = sum(_log_p(world, prompt, best.tokens[:i], token) for i, token in enumerate(best.tokens))
    if abs(expected - best.logp) > CLOSE:
        raise LawBroken(f"{method} on {prompt}: log-probability {best.logp} of {best.tokens}, which is {expected}")
    return len(alone.tokens)


def _log_p(world: World, prompt: list[int], output: list[int], token: int) -> float:
    assert isinstance(world.oracle, NetworkOracle)
    run = Run(world.lm, prompt, Settings(max_tokens=TOKENS))
    row = world.oracle.logits_after(prompt, output).float().log_softmax(-1)
    return float(run.target.processed(row, [*run.ids, *output])[token])


def _optimum(method: Any, world: World) -> int:
    """The best of all texts that contain the phrase, by enumeration."""
    assert isinstance(world.oracle, TableOracle)
    compared = 0
    for phrases in ([[0, 0, 1]], [[1, 1]], [[0, 1], [1, 0]], [[1, 0, 1], [0]]):
        for length in (3, 5):
            prompt, settings = world.prompts[1], Settings(max_tokens=length)
            law = world.oracle.law(prompt, replace(settings, temperature=1.0))
            fitting = {text: p for text, p in law.items() if all(has(text, phrase) for phrase in phrases)}
            wide = replace(method, phrases=phrases, beams=4 * 3**length, length_penalty=0.0, early="never")
            (answer,) = decode(world.lm, wide, [prompt], settings)
            if law[tuple(answer.tokens)] < max(fitting.values()) - 1e-12 or tuple(answer.tokens) not in fitting:
                best = max(fitting, key=lambda t: fitting[t])
                raise LawBroken(f"{wide}: {answer.tokens} is not the likeliest text with the phrases, {best} is")
            compared += len(law)
    return compared


def has(text: Any, phrase: Any) -> bool:
    """Whether a phrase stands in a text as a run of tokens."""
    text, phrase = list(text), list(phrase)
    return any(text[i : i + len(phrase)] == phrase for i in range(len(text) - len(phrase) + 1))
