"""Rewards by name: what they score, that they are asked once, and what is told where there is none."""

from __future__ import annotations

from typing import Any

import pytest

import segue
from segue.choose.parts import scorer
from segue.choose.parts.hypothesis import Hypothesis
from segue.choose.parts.scorer import Likelihood, Scorer, named, scored
from segue.data import Settings
from segue.models.run import Run


class Noted:
    """An object of somebody else's, which notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        self.asked.append((prompt, texts))
        return [float(len(text)) for text in texts]


def lengths(prompt: str, texts: list[str]) -> list[int]:
    return [len(prompt) + len(text) for text in texts]


def test_every_kind_scores_texts() -> None:
    assert named("regex:a+").score("aaa", ["b", "ab aa", ""]) == [0.0, 2.0, 0.0]
    assert scored(named(f"{__name__}:lengths"), "ab", ["c", ""]) == [3.0, 2.0]
    own = Noted()
    assert named(own) is own
    assert isinstance(named("lm"), Likelihood)
    with pytest.raises(ValueError, match="no other texts"):
        named("lm").score("a", ["b"])


def test_texts_are_scored_once_and_counted() -> None:
    lm = segue.model().lm
    run = Run(lm, lm.encode("Once upon"), Settings(max_tokens=9))
    own = Noted()
    mine = Scorer(run, own)
    ids = lm.encode(" a time", special=False)
    texts = [Hypothesis(tokens=ids), Hypothesis(), Hypothesis(tokens=ids)]
    assert mine.of(texts) == [7.0, 0.0, 7.0]
    assert mine.of(texts[:2]) == [7.0, 0.0]
    assert own.asked == [("Once upon", [" a time", ""])]
    assert run.stats.scorer_calls == 2


def test_likelihood_is_that_of_the_tokens() -> None:
    lm = segue.model().lm
    run = Run(lm, lm.encode("Once"), Settings(max_tokens=9))
    mine = Scorer(run, named("lm"))
    assert mine.of([Hypothesis(tokens=[5, 6], logps=[-1.0, -3.0]), Hypothesis()]) == [-2.0, 0.0]
    assert run.stats.scorer_calls == 2


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("regx", "did you mean regex:PATTERN"),
        ("classifer:", "did you mean classifier:PATH"),
        ("zzzz", "lm, regex:PATTERN, classifier:PATH, module:function"),
        ("regex:[", "no regular expression"),
        ("os:nothing", "cannot be imported"),
        ("os:sep", "is not a function"),
        (7, "a name, or an object with score"),
    ],
)
def test_unknown_names_are_told_the_nearest(reward: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        named(reward)


@pytest.mark.parametrize("numbers", [[1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_scores_are_finite_numbers_one_a_text(numbers: list[float]) -> None:
    class Broken:
        def score(self, prompt: str, texts: list[str]) -> list[float]:
            return numbers

    with pytest.raises(ValueError, match="one finite number for each is needed"):
        scored(Broken(), "", ["a", "b"])


def test_reranking_shares_the_rewards() -> None:
    answer = segue.model().generate(
        "The king", segue.method("quality_aware", features="regex:the", samples=4), max_tokens=30, seed=1
    )
    assert answer.candidates is not None
    counts = [scorer.named("regex:the").score("", [c.text])[0] for c in answer.candidates]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
