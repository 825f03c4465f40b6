"""The target of minimum Bayes risk: of the drawn texts the one with the largest mean utility, by a double loop over
sacrebleu's own scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.drawing import Text, answers, best, candidates_hold, edges_hold, samples_hold, words
from segue.laws.oracle import TableOracle
from segue.laws.worlds import World


def hold(method: Any, world: World) -> dict[str, float]:
    """The law of the answer on a table; every candidate's score on a network. Raises LawBroken."""
    if isinstance(world.oracle, TableOracle):
        few = replace(method, samples=3)
        forms = [few, replace(few, utility="bleu", itself=False), replace(few, duplicates="merge")]
        return {"total variation": max(samples_hold(form, world, _picker(form)) for form in forms)}
    compared = edges_hold(replace(method, samples=3), world)
    for form in (method, replace(method, utility="bleu", samples=5, itself=False)):
        for settings in (Settings(max_tokens=6, seed=5), Settings(max_tokens=8, temperature=0.4, top_k=3, seed=7)):
            for prompt, answer in answers(form, world, settings):
                found = candidates_hold(form, world, prompt, answer)
                draws = [
                    tuple(c.tokens) for c, n in zip(found, answer.trace[0]["counts"], strict=True) for _ in range(n)
                ]
                if len(draws) != form.samples:
                    raise LawBroken(f"{form} drew {len(draws)} texts")
                expected = _scores(form, draws)
                for candidate in found:
                    score = expected[draws.index(tuple(candidate.tokens))]
                    if abs(score - candidate.score) > 1e-6:
                        raise LawBroken(f"{form}: {candidate} scores {score:.6g} by sacrebleu")
                if max(expected) > found[0].score + 1e-6:
                    raise LawBroken(f"{form}: {found[0]} is not the best of {expected}")
                compared += sum(len(c.tokens) for c in found)
    return {"tokens": compared}


def _picker(method: Any) -> Callable[[list[Text], Callable[[Text], float]], dict[Text, float]]:
    def pick(texts: list[Text], logp: Callable[[Text], float]) -> dict[Text, float]:
        kept = sorted(set(texts)) if method.duplicates == "merge" else texts
        return {best(kept, _scores(method, kept), logp): 1.0}

    return pick


def _scores(method: Any, texts: list[Text]) -> list[float]:
    """Mean utility of each draw against all draws (or all others)."""
    found = []
    for i, mine in enumerate(texts):
        others = [text for j, text in enumerate(texts) if method.itself or j != i]
        found.append(sum(utility(method.utility, mine, text) for text in others) / len(others) if others else 0.0)
    return found


def utility(name: str, candidate: Text, reference: Text) -> float:
    """sacrebleu's sentence score of two texts of token ids."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF() if name == "chrf" else BLEU(effective_order=True)
    return float(metric.sentence_score(words(candidate), [words(reference)]).score)
