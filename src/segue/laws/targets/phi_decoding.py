"""The target of phi-decoding: its exact law by listing all steps, endings and choices, and on a network every figure of
the trace computed anew, with scikit-learn's clusters and scipy's softmax."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from segue import catalog
from segue.choose.parts.unit import Unit
from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.drawing import TOLERANCE, answers, edges_hold
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.foresight import Naive, Text, kept, last_choice, means, weights, words
from segue.laws.oracle import TableOracle
from segue.laws.worlds import World

TOKENS = 9
CLOSE = 1e-4  # of means of log-probabilities: the method's rows are float32, of several forwards in one pack
TABLES: tuple[dict[str, Any], ...] = (
    {"beams": 1, "rollouts": 2, "foresights": 1},
    {"beams": 2, "rollouts": 1, "foresights": 1},
    {"beams": 2, "foresights": 0},
    {"beams": 1, "rollouts": 3, "foresights": 1, "clusters": 2, "sigma": 10.0},
)
NETWORKS: tuple[dict[str, Any], ...] = (
    {"beams": 2, "rollouts": 3, "foresights": 2, "unit": Unit("token", least=2)},
    {"beams": 3, "rollouts": 2, "foresights": 4, "unit": Unit(), "sigma": 0.5, "least": 2, "agreed": 0.5},
    {"beams": 2, "rollouts": 2, "foresights": 3, "unit": Unit("token", least=3), "rising": True},
)
NETWORK_SETTINGS = (
    Settings(max_tokens=TOKENS, seed=3),
    Settings(max_tokens=TOKENS, seed=4, temperature=0.8, top_k=8),
    Settings(max_tokens=TOKENS, seed=5, temperature=1.2),
)


def hold(method: Any, world: World) -> dict[str, float]:
    """The law of the answer on a table; every figure of the trace on a network. With one beam and nothing looked ahead
    it is plain sampling, by the same draws. Raises LawBroken."""
    method = replace(method, unit=Unit(), show=True)
    compared = _plain(replace(method, beams=1, rollouts=1, foresights=0), world)
    if isinstance(world.oracle, TableOracle):
        forms = TABLES if world.lm.vocab_size == 2 else TABLES[::2]  # the others have too many branches there
        return {"total variation": max(_law(replace(method, **form), world) for form in forms)}
    for form, settings in zip(NETWORKS, NETWORK_SETTINGS, strict=True):
        own = replace(method, **form)
        compared += sum(_traced(own, world, *found) for found in answers(own, world, settings))
    compared += edges_hold(replace(method, beams=2, rollouts=2, foresights=3), world)
    return {"tokens": compared}


def _plain(method: Any, world: World) -> int:
    settings = Settings(max_tokens=12, temperature=0.9, seed=8)
    found = decode(world.lm, method, world.prompts, settings)
    expected = decode(world.lm, catalog.build("plain"), world.prompts, settings)
    if [a.tokens for a in found] != [a.tokens for a in expected]:
        raise LawBroken(f"{method} is not plain sampling: {[a.tokens for a in found]}")
    return sum(len(a.tokens) for a in found)


def _traced(method: Any, world: World, prompt: list[int], answer: Any) -> int:
    """Every figure of a trace; how many tokens were looked at."""

    mean = means(world, prompt)

    def near(what: str, found: float, expected: float) -> None:
        if not abs(found - expected) <= CLOSE * max(1.0, abs(expected)):
            raise LawBroken(f"{method} on {prompt}: {what} is {found:.6g} instead of {expected:.6g}")

    compared = 0
    values: dict[Text, list[float]] = {(): [0.0]}  # F of every beam
    rounds, last = answer.trace[:-1], answer.trace[-1]
    for number, seen in enumerate(rounds):
        s = [one["logp"] for one in seen["drawn"]]
        for one in seen["drawn"]:
            text, begin = tuple(one["tokens"]), one["begin"]
            if text[:begin] not in values or not _whole(world, method.unit, text, begin):
                raise LawBroken(f"{method} on {prompt}: {text} is no step from a beam of {list(values)}")
            near("s", one["logp"], mean(text, begin))
        above = kept(method, s)
        missing = max(0, min(method.beams, len(s)) - len(above))
        if not set(above) <= set(seen["kept"]) or len(seen["kept"]) != len(above) + missing:
            raise LawBroken(f"{method} on {prompt}: of {s} {seen['kept']} were kept instead of {above}")
        for path, one in zip(seen["paths"], [seen["drawn"][i] for i in seen["kept"]], strict=False):
            text, ending = tuple(path["tokens"]), tuple(path["ending"])
            if list(text) != one["tokens"]:
                raise LawBroken(f"{method} on {prompt}: {text} was looked behind instead of {one}")
            over = len(ending) and text[one["begin"] :] == ending and _over(world, text)
            near("F", path["F"], mean(text, one["begin"]) if over else mean((*text, *ending), len(text)))
            if min(abs(path["A"] - (path["F"] - f)) for f in values[text[: one["begin"]]]) > CLOSE:
                raise LawBroken(f"{method} on {prompt}: the advantage of {path} is none over {values}")
            compared += len(text) + len(ending)
        _weighed(method, near, seen["paths"])
        labels = [p["cluster"] for p in seen["paths"]]
        among = len(labels) - labels.count(-1)
        near("the share", seen["share"], max((labels.count(label) / among for label in {*labels} - {-1}), default=0.0))
        chosen = [seen["paths"][i] for i in seen["chosen"]]
        if len(chosen) != min(method.beams, len(labels)):
            raise LawBroken(f"{method} on {prompt}: {len(chosen)} beams of {len(labels)} candidates")
        values = defaultdict(list)
        for path in chosen:
            values[tuple(path["tokens"])].append(path["F"])
        if seen["share"] > method.agreed and number + 1 >= method.least and number + 1 != len(rounds):
            raise LawBroken(f"{method} on {prompt}: it went on though {seen['share']:.3g} of the endings agree")
    paths = last["paths"]
    texts = [words(path["ending"]) for path in paths]
    for path, w in zip(paths, last_choice(method, [p["A"] for p in paths], texts), strict=True):
        near("the probability of an answer", path["w"], w)
    if paths[last["chosen"]]["tokens"] != answer.tokens or not paths[last["chosen"]]["w"] > 0:
        raise LawBroken(f"{method} on {prompt}: {answer.tokens} was given out of {paths}")
    return compared + sum(len(path["tokens"]) for path in paths)


def _weighed(method: Any, near: Callable[[str, float, float], None], paths: list[dict[str, Any]]) -> None:
    labels, w = weights(method, [p["A"] for p in paths], [words(p["ending"]) for p in paths])
    for path, label, one in zip(paths, labels, w, strict=True):
        near("w", path["w"], one)
        if path["cluster"] != label:
            raise LawBroken(f"{method}: {path} is in cluster {label}")


def _over(world: World, text: Text) -> bool:
    return len(text) >= TOKENS or text[-1] in world.lm.eos_ids


def _whole(world: World, unit: Unit, text: Text, begin: int) -> bool:
    """Whether a step is as long as its unit, or ends the text."""
    return len(text) - begin == unit.least or _over(world, text)


def _law(method: Any, world: World) -> float:
    prompt, largest = world.prompts[-1], 0.0
    for settings in (Settings(max_tokens=2), Settings(temperature=0.8, max_tokens=2, min_tokens=2)):
        law: Law = defaultdict(float)
        for weight, text in Naive(method, world, prompt, settings).answers([((), 0.0, (), False)] * method.beams, 0):
            law[text] += weight
        seen = distribution(world.lm, method, prompt, settings)
        apart = total_variation(seen.p, law)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest
