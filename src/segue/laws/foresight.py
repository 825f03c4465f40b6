"""Phi-decoding written down: its formulas by scikit-learn and scipy, and all that it may answer, by listing every step,
ending and choice."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segue.data import Settings
from segue.laws.warped import warped
from segue.laws.worlds import World

Text = tuple[int, ...]
Beam = tuple[Text, float, Text, bool]  # tokens, F, ending, whether it has ended
Weighted = list[tuple[float, Any]]


def clusters(texts: Sequence[str], most: int) -> list[int]:
    """Labels of k-means over TF-IDF vectors, as scikit-learn gives them."""
    return list(_clusters(tuple(texts), most))


@functools.lru_cache(maxsize=10_000)
def _clusters(texts: tuple[str, ...], most: int) -> tuple[int, ...]:
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]+").fit_transform(texts).toarray()
    k = min(most, len({tuple(row) for row in vectors.tolist()}))
    return tuple(KMeans(k, n_init=4, random_state=0).fit(vectors).labels_.tolist()) if k > 1 else (0,) * len(texts)


def weights(method: Any, advantages: Sequence[float], texts: Sequence[str]) -> tuple[list[int], list[float]]:
    """Clusters (-1: not clustered) and w = (softmax(A / temperature) + softmax(C)) / 2."""
    from scipy.special import softmax

    places = [i for i, a in enumerate(advantages) if a > 0 or not method.rising]
    if len(places) < min(method.beams, len(advantages)):
        return [-1] * len(advantages), softmax(np.array(advantages) / method.sharpness).tolist()
    found = clusters([texts[i] for i in places], method.clusters)
    w_a = softmax(np.array([advantages[i] for i in places]) / method.sharpness)
    w_c = softmax([found.count(label) / len(found) for label in found])
    labels, w = [-1] * len(advantages), [0.0] * len(advantages)
    for i, label, one in zip(places, found, ((w_a + w_c) / 2).tolist(), strict=True):
        labels[i], w[i] = label, one
    return labels, w


def last_choice(method: Any, advantages: Sequence[float], texts: Sequence[str]) -> list[float]:
    """The probability of each finished answer."""
    from scipy.special import softmax

    labels = clusters(texts, 2)
    groups = [[i for i, label in enumerate(labels) if label == group] for group in (0, 1)]
    larger = max(filter(None, groups), key=lambda g: (len(g), max(advantages[i] for i in g)))
    found = [0.0] * len(texts)
    for i, p in zip(larger, softmax([advantages[i] / method.sharpness for i in larger]), strict=True):
        found[i] = float(p)
    return found


def kept(method: Any, s: Sequence[float]) -> list[int]:
    """Candidates above the mean less sigma standard deviations."""
    floor = np.mean(s) - method.sigma * np.std(s)
    return [i for i, one in enumerate(s) if one > floor + 1e-9]


def means(world: World, prompt: Sequence[int]) -> Callable[[Text, int], float]:
    """The mean log-probability of the tokens of a text from some place on, by one full forward a token."""

    @functools.cache
    def total(text: Text) -> float:
        if not text:
            return 0.0
        row = world.oracle.logits_after(prompt, text[:-1]).double().log_softmax(-1)
        return total(text[:-1]) + float(row[text[-1]])

    return lambda text, begin: (total(text) - total(text[:begin])) / (len(text) - begin)


def words(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


class Naive:
    """The published algorithm over all its choices, with lists; a step is one token."""

    def __init__(self, method: Any, world: World, prompt: Sequence[int], settings: Settings) -> None:
        self.method, self.world, self.prompt, self.settings = method, world, prompt, settings
        self.mean = means(world, prompt)
        self.written = functools.cache(self._written)

    def _written(self, text: Text, heat: float, size: int) -> Weighted:
        """What may be written behind a text in so many tokens at most."""
        if size == 0 or self.over(text):
            return [(1.0, text)]
        settings = replace(self.settings, temperature=(self.settings.temperature or 1.0) * heat)
        row = self.world.oracle._scores([*self.prompt, *text], len(self.prompt), settings)  # type: ignore[attr-defined]
        steps = [(p, (*text, token)) for token, p in enumerate(warped(row, settings)) if p > 0]
        return [(p * q, end) for p, more in steps for q, end in self._written(more, heat, size - 1)]

    def over(self, text: Text) -> bool:
        return len(text) == self.settings.max_tokens or (text != () and text[-1] in self.world.lm.eos_ids)

    def answers(self, beams: list[Beam], depth: int) -> Iterator[tuple[float, Text]]:
        m = self.method
        if depth == m.foresights or all(beam[3] for beam in beams):
            yield from self._finished(beams)
            return
        going = [beam for beam in beams if not beam[3] for _ in range(m.rollouts)]
        for weight, texts in _product([self.written(beam[0], m.tau, 1) for beam in going]):
            s = [self.mean(text, len(beam[0])) for text, beam in zip(texts, going, strict=True)]
            for share, places in self._pruned(s):
                for p, ends in _product([self.written(texts[i], 1.0, 99) for i in places]):
                    found, advantages = [], []
                    for i, end in zip(places, ends, strict=True):
                        over = self.over(texts[i])
                        begin = len(going[i][0]) if over else len(texts[i])
                        found.append((texts[i], self.mean(end, begin), end[begin:], over))
                        advantages.append(found[-1][1] - going[i][1])
                    found += [beam for beam in beams if beam[3]]
                    advantages += [0.0] * (len(found) - len(advantages))
                    yield from self._chosen(weight * share * p, found, advantages, len(going[0][0]), depth)

    def _chosen(
        self, weight: float, found: list[Beam], advantages: list[float], begin: int, depth: int
    ) -> Iterator[tuple[float, Text]]:
        m = self.method
        labels, w = weights(m, advantages, [words(beam[2]) for beam in found])
        agreed = max(labels.count(label) / len(labels) for label in labels) > m.agreed
        for p, chosen in drawn(w, min(m.beams, len(w))):
            beams = [found[i] for i in chosen]
            same = len(beams) > 1 and len({beam[0][begin:] for beam in beams}) == 1
            stop = (agreed or same) and depth + 1 >= m.least
            for q, answer in self.answers(beams, m.foresights if stop else depth + 1):
                yield weight * p * q, answer

    def _pruned(self, s: list[float]) -> Weighted:
        above = kept(self.method, s)
        out = [i for i in range(len(s)) if i not in above]
        missing = min(self.method.beams - len(above), len(out))
        if missing <= 0:
            return [(1.0, above)]
        mass = [math.exp(s[i] / self.method.sharpness) for i in out]
        return [(p, sorted([*above, *(out[i] for i in back)])) for p, back in drawn(mass, missing)]

    def _finished(self, beams: list[Beam]) -> Iterator[tuple[float, Text]]:
        for weight, ends in _product([self.written(beam[0], 1.0, 99) for beam in beams]):
            texts, advantages = [], []
            for (text, value, ending, over), end in zip(beams, ends, strict=True):
                texts.append(words(ending if over else end[len(text) :]))
                advantages.append(0.0 if over else self.mean(end, len(text)) - value)
            for p, end in zip(last_choice(self.method, advantages, texts), ends, strict=True):
                yield weight * p, end


def _product(options: Sequence[Weighted]) -> Weighted:
    """All combinations of independent choices."""
    return [(math.prod(p for p, _ in some), [one for _, one in some]) for some in itertools.product(*options)]


def drawn(mass: Sequence[float], count: int) -> Weighted:
    """All sets of so many places, drawn one after the other by mass without replacement."""
    found: dict[Text, float] = defaultdict(float)
    for order in itertools.permutations(range(len(mass)), count):
        p, left = 1.0, math.fsum(mass)
        for i in order:
            p, left = p * mass[i] / left, left - mass[i]
        found[tuple(sorted(order))] += p
    return [(p, list(places)) for places, p in found.items()]
