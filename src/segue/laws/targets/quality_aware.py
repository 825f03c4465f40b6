"""The target of quality-aware reranking: the largest weighted sum of features that one full forward a token gives, and
in two stages the best mean chrF, by sacrebleu, among those that rank first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken
from segue.laws.drawing import Text, answers, best, candidates_hold, edges_hold, model_logp, samples_hold
from segue.laws.oracle import TableOracle
from segue.laws.targets.mbr import utility
from segue.laws.worlds import World

CLOSE = 1e-3


def hold(method: Any, world: World) -> dict[str, float]:
    """The law of the answer on a table; every candidate's score on a network. Raises LawBroken."""
    few = replace(method, samples=3)
    forms = [
        few,
        replace(few, features="logp,length", weights="1,0.4"),
        replace(few, features="reverse"),
        replace(few, utility="chrf", keep=2),
    ]
    if isinstance(world.oracle, TableOracle):
        prompt = world.prompts[-1]
        return {"total variation": max(samples_hold(form, world, _picker(form, world, prompt)) for form in forms)}
    compared = edges_hold(forms[1], world)
    for form in forms[1:]:
        form = replace(form, samples=4)
        for prompt, answer in answers(form, world, Settings(max_tokens=7, seed=11)):
            found = candidates_hold(form, world, prompt, answer)
            first = _first_stage(form, world, prompt)
            if form.utility:
                _two_stages(form, world, prompt, answer)
            for candidate in found if not form.utility else ():
                score = first(tuple(candidate.tokens))
                if abs(score - candidate.score) > CLOSE * max(1.0, abs(score)):
                    raise LawBroken(f"{form}: {candidate} scores {score:.6g}")
                if score > found[0].score + CLOSE * max(1.0, abs(score)):
                    raise LawBroken(f"{form}: {candidate} is better than {found[0]}")
            compared += sum(len(c.tokens) for c in found)
    return {"tokens": compared}


def _two_stages(form: Any, world: World, prompt: list[int], answer: Any) -> None:
    """The same draws ranked in one stage say who reaches the second."""
    from segue.laws.base import decode

    one = replace(form, utility="", keep=0)
    (all_of_them,) = decode(world.lm, one, [prompt], Settings(max_tokens=7, seed=11))
    counts = dict(zip(_texts(all_of_them), all_of_them.trace[0]["counts"], strict=True))
    kept = _texts(all_of_them)[: form.keep]
    draws = [text for text in kept for _ in range(counts[text])]
    score = {text: sum(utility("chrf", text, other) for other in draws) / len(draws) for text in kept}
    found = {tuple(c.tokens): c.score for c in answer.candidates}
    if set(found) != set(kept) or any(abs(found[text] - score[text]) > 1e-6 for text in kept):
        raise LawBroken(f"{form} scores {found}, where sacrebleu gives {score} of those kept")


def _texts(answer: Any) -> list[Text]:
    return [tuple(c.tokens) for c in answer.candidates]


def _first_stage(method: Any, world: World, prompt: list[int]) -> Callable[[Text], float]:
    names = method.features.split(",")
    weights = [float(w) for w in method.weights.split(",")] if method.weights else [1.0] * len(names)
    known: dict[Text, float] = {}

    def score(text: Text) -> float:
        if text not in known:
            logp = model_logp(world, prompt, text)
            of = {"logp": logp, "mean_logp": logp / len(text), "length": float(len(text))}
            if "reverse" in names:
                of["reverse"] = model_logp(world, list(text), prompt) / len(prompt)
            known[text] = sum(w * of[name] for w, name in zip(weights, names, strict=True))
        return known[text]

    return score


def _picker(
    method: Any, world: World, prompt: list[int]
) -> Callable[[list[Text], Callable[[Text], float]], dict[Text, float]]:
    score = _first_stage(method, world, prompt)

    def pick(texts: list[Text], logp: Callable[[Text], float]) -> dict[Text, float]:
        if not method.utility:
            return {best(texts, [score(t) for t in texts], logp): 1.0}
        kept = sorted(set(texts), key=lambda t: (-round(score(t), 9), -logp(t), t))[: method.keep]
        draws = [t for t in texts if t in kept]
        means = [sum(utility("chrf", t, other) for other in draws) / len(draws) for t in kept]
        return {best(kept, means, logp): 1.0}

    return pick
