"""The target of AWRS: the model's own law of whole texts, cut down to those that satisfy the constraint.

On tables all branches of a run are walked, so that expectations are exact: the weight of a text has the text's mass as
its expectation, for one particle and for several that are drawn anew. With one particle, or with weights left out, what
is given out has the law of masking token by token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segue.data import Automaton, Completion, ConstraintError, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.drawing import TOLERANCE, Text, answers, candidates_hold
from segue.laws.edges import edges, ending_at
from segue.laws.enumerate import Law, ScriptedChance, total_variation, walk
from segue.laws.oracle import TableOracle, complete
from segue.laws.worlds import World
from segue.models.engine import Engine
from segue.models.run import Run
from segue.ops.automaton import Avoid, Phrases, Trie

BRANCHES = 60_000
WALKED: tuple[tuple[dict[str, Any], int], ...] = (  # fields and tokens
    ({"particles": 1, "estimator": "recursive"}, 3),
    ({"particles": 1, "estimator": "recursive", "patience": 1}, 3),
    ({"particles": 2, "estimator": "recursive", "resample": 1.0, "patience": 1}, 2),
)
DRAWS = 200  # particles of which a mean is taken on a network


def hold(method: Any, world: World) -> dict[str, float]:
    """Expectations and laws on a table; every candidate and the mean weight on a network. Raises LawBroken."""
    if isinstance(world.oracle, TableOracle):
        return {"expectation": max(_expectations(method, world), _by_token(method, world))}
    compared = _edges(method, world)
    end = 2 % world.lm.vocab_size
    with ending_at(world.lm, frozenset([end])):
        for automaton in constraints(world.lm.vocab_size, end, none_of=range(40, 60)):
            settings = Settings(max_tokens=8, temperature=0.9, seed=4, constraint=automaton)
            for prompt, answer in answers(replace(method, particles=4), world, settings):
                for candidate in candidates_hold(method, world, prompt, answer):
                    if not accepted(automaton, candidate.tokens):
                        raise LawBroken(f"{method} on {prompt}: {candidate} does not satisfy {automaton}")
                    compared += len(candidate.tokens)
        _means(replace(method, particles=DRAWS), world, end)
    return {"tokens": compared}


def constraints(size: int, end: int | None, none_of: Sequence[int] = ()) -> list[Automaton]:
    """Constraints over tokens 0 and 1, or some others."""
    a, b = [token for token in range(size) if token != end][:2]
    ends = [] if end is None else [end]
    found: list[Automaton] = [Avoid(size, ends, [(a, a), (b, b, b), *((t,) for t in none_of)])]
    if not none_of:
        found += [Phrases(size, ends, [(b, a)]), Trie(size, ends, [[a, b], [b], [b, b, a]])]
        found.append(Avoid(size, ends, [(a,)]))
    return found


def accepted(automaton: Automaton, tokens: Sequence[int]) -> bool:
    """Whether a constraint takes a text, read from the start."""
    state: Any = automaton.start()
    for token in tokens:
        state = None if state is None else automaton.step(state, token)
    return state is not None and automaton.accepting(state)


def masses(world: World, prompt: Sequence[int], settings: Settings) -> Law:
    """What each text that satisfies the constraint weighs under the model: the law of all texts without one, cut where
    a text is complete, and only those kept that are accepted."""
    assert isinstance(world.oracle, TableOracle)
    assert settings.constraint is not None
    found: Law = defaultdict(float)
    for text, p in world.oracle.law(prompt, replace(settings, constraint=None)).items():
        cut = next((text[:n] for n in range(1, len(text)) if complete(settings, text[:n])), text)
        if accepted(settings.constraint, cut):
            found[cut] += p
    return dict(found)


def walked(method: Any, world: World, prompt: Sequence[int], settings: Settings) -> tuple[Law, Law]:
    """By all branches of a run: the expected weight of every text, and the law of the answer (what is missing died)."""
    engine = Engine()

    def play(chance: ScriptedChance) -> Completion | None:
        try:
            return decode(world.lm, method, [prompt], settings, source=chance, engine=engine)[0]
        except ConstraintError:
            return None

    weight: Law = defaultdict(float)
    law: Law = defaultdict(float)
    for p, answer in walk(play, BRANCHES):
        if answer is not None:
            law[tuple(answer.tokens)] += p
            for candidate in answer.candidates or []:
                assert candidate.logw is not None
                weight[tuple(candidate.tokens)] += p * math.exp(candidate.logw)
    return dict(weight), dict(law)


def _expectations(method: Any, world: World) -> float:
    prompt, largest = world.prompts[-1], 0.0
    end = next(iter(world.lm.eos_ids), None)
    for fields, tokens in WALKED:
        tokens += world.lm.vocab_size == 2 and tokens == 2  # where branches are fewer
        for automaton in constraints(world.lm.vocab_size, end):
            for settings in (
                Settings(max_tokens=tokens),
                Settings(max_tokens=tokens, temperature=0.7, top_k=2, logit_bias={1: 0.75}, frequency_penalty=0.4),
            ):
                asked = replace(settings, constraint=automaton)
                expected = masses(world, prompt, replace(asked, temperature=settings.temperature or method.temperature))
                if not expected:
                    continue
                seen, _ = walked(replace(method, **fields), world, prompt, asked)
                apart = max(abs(seen.get(text, 0.0) - expected.get(text, 0.0)) for text in {*seen, *expected})
                if not apart <= TOLERANCE:
                    raise LawBroken(
                        f"{method} with {fields}, {asked}: the expected weight of a text is {apart:.3g} from its mass"
                    )
                largest = max(largest, apart)
    return largest


def _by_token(method: Any, world: World) -> float:
    """One particle: what is given out is what masks would give."""
    assert isinstance(world.oracle, TableOracle)
    prompt, largest = world.prompts[-1], 0.0
    end = next(iter(world.lm.eos_ids), None)
    for estimator in ("recursive", "none"):
        for automaton in constraints(world.lm.vocab_size, end):
            settings = Settings(max_tokens=3, temperature=0.8, constraint=automaton)
            if not masses(world, prompt, settings):
                continue
            _, law = walked(replace(method, particles=1, estimator=estimator), world, prompt, settings)
            apart = total_variation(law, world.oracle.law(prompt, settings))
            if not apart <= TOLERANCE:
                raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from that of masks")
            largest = max(largest, apart)
    return largest


def _means(method: Any, world: World, end: int) -> None:
    """The mean weight of texts of one token is the mass that is allowed, within five standard errors."""
    for estimator in ("recursive", "geometric"):
        for place, prompt in enumerate(world.prompts):
            run = Run(world.lm, prompt, Settings(max_tokens=1))
            row = run.target.processed(world.oracle.logits_after(prompt, []), run.ids).double().softmax(-1)
            banned = [t for t in range(world.lm.vocab_size) if t != end and (t % 3 or t == int(row.argmax()))]
            automaton = Avoid(world.lm.vocab_size, [end], [(t,) for t in banned])
            mass = float(row[[t for t in range(world.lm.vocab_size) if t not in banned]].sum())
            if mass < 0.02:  # a model that forces its first token, or hardly any mass to find
                continue
            settings = Settings(max_tokens=1, temperature=1.0, seed=place, constraint=automaton)
            (answer,) = decode(world.lm, replace(method, estimator=estimator), [prompt], settings)
            mean = sum(math.exp(c.logw or 0.0) for c in answer.candidates or [])
            if abs(mean - mass) > 5 * math.sqrt(mass * (1 - mass) / DRAWS):
                raise LawBroken(f"{method} on {prompt}: the mean weight is {mean:.4f}, and {mass:.4f} is allowed")


def _edges(method: Any, world: World) -> int:
    """Where one token is left to draw from and the constraint bans what does not come, every draw is the greedy text:
    its ends, limits and penalties are held to transformers. Returns the tokens that were compared."""
    compared = 0
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        if edge.settings.constraint is not None or edge.settings.ignore_eos:
            continue
        with ending_at(world.lm, edge.eos):
            expected = world.oracle.answer(edge.prompt, edge.settings)
            ends = edge.eos | set(edge.settings.stop_tokens)
            rare = next(t for t in range(world.lm.vocab_size) if t not in ends and t not in expected.tokens)
            automaton = Avoid(world.lm.vocab_size, ends, [(rare, rare)])
            settings = replace(edge.settings, temperature=1.0, top_k=1, constraint=automaton)
            (answer,) = decode(world.lm, replace(method, particles=3), [edge.prompt], settings)
        if (answer.tokens, answer.finish_reason) != (expected.tokens, expected.reason):
            raise LawBroken(f"{method} at the edge {edge.name!r}: {answer.tokens} instead of {expected.tokens}")
        if settings.logprobs is not None and [t.token for t in answer.logprobs or []] != answer.tokens:
            raise LawBroken(f"{method} at the edge {edge.name!r}: its log-probabilities are not those of its answer")
        (only,) = answer.candidates or []
        if abs(only.logw or 0.0) > TOLERANCE:
            raise LawBroken(f"{method} at the edge {edge.name!r}: a text that is certain weighs {only.logw}")
        compared += len(answer.tokens)
    return compared


def posterior(world: World, prompt: Sequence[int], settings: Settings) -> dict[Text, float]:
    """The law of the texts that satisfy the constraint: what many particles come near to."""
    found = masses(world, prompt, settings)
    total = math.fsum(found.values())
    return {text: p / total for text, p in found.items()}
