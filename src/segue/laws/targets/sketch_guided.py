"""The target of sketch-guided decoding: the likeliest allowed token behind prompt, sketch and what is written, one full
forward a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segue.data import Automaton, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.worlds import World
from segue.models.run import Run
from segue.ops.automaton import Avoid, Phrases

GAP = 1e-4
TOKENS = 10


def hold(method: Any, world: World) -> dict[str, float]:
    """Greedy decoding of the local model; a beam of one is the default. Raises LawBroken."""
    compared, lm = 0, world.lm
    end = 2 % lm.vocab_size
    for prompt in world.prompts:
        for sketch in ([1], [0, 1, 0], [1, 1, 0, 0, 1]):
            with ending_at(lm, frozenset([end])):
                free = world.oracle.answer(prompt, Settings(max_tokens=4, ignore_eos=True)).tokens
                first, *others = [t for t in [*free, 0, 1] if t != end]
                automata: list[Automaton] = [Avoid(lm.vocab_size, [end], [[first, first]])]
                if not lm.start_ids:  # some force an end where a phrase may still be due
                    automata.append(Phrases(lm.vocab_size, [end], [[first, first], others[-1:]]))
                for automaton in automata:
                    settings = Settings(max_tokens=TOKENS, constraint=automaton)
                    compared += _compare(replace(method, sketch=sketch), world, prompt, settings)
    return {"tokens": compared}


def _compare(method: Any, world: World, prompt: list[int], settings: Settings) -> int:
    alone, together = (decode(world.lm, method, b, settings)[0] for b in ([prompt], [prompt, *world.prompts]))
    if alone.tokens != together.tokens:
        raise LawBroken(f"{method} on {prompt}: {alone.tokens} alone, {together.tokens} in a batch")
    own = Run(world.lm, prompt, replace(settings, constraint=None))  # a model may force or forbid tokens by itself
    automaton: Any = settings.constraint
    state = automaton.start()
    for place, token in enumerate(alone.tokens):
        before = [*method.sketch, *alone.tokens[:place]]
        row = own.target.processed(world.oracle.logits_after(prompt, before), [*own.ids, *alone.tokens[:place]])
        left = TOKENS - place
        allowed = [t for t in range(len(row)) if _fits(automaton, state, t, left)]
        best = max(float(row[t]) for t in allowed)
        if token not in allowed or best - float(row[token]) > GAP:
            raise LawBroken(f"{method} on {prompt}: token {place} is {token}, of {allowed} another is likelier")
        state = automaton.step(state, token)
    if not automaton.accepting(state):
        raise LawBroken(f"{method} on {prompt}: {alone.tokens} does not satisfy {automaton}")
    return len(alone.tokens)


def _fits(automaton: Any, state: Any, token: int, left: int) -> bool:
    """Whether a token is allowed, and the text can be completed with what is left behind it."""
    after = automaton.step(state, token)
    return after is not None and (token in automaton.end_ids or automaton.shortest(after) <= left - 1)
