"""Quality-aware reranking: the law holds the ranking to brute force; here stages, tuning, features and costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

import segue
from segue.api import Model
from segue.choose.parts import quality
from segue.choose.parts.rerank import Drawn
from segue.laws.base import LawBroken
from segue.laws.targets.quality_aware import hold
from segue.laws.worlds import network_world, toy_world
from segue.models.run import Run

PROMPTS = ["Once upon a time", "The old king said", "It was a dark night", "She went to the"]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def test_two_stages_over_all_answers_are_plain_mbr(model: Model) -> None:
    both = segue.method("quality_aware", samples=6, utility="chrf")
    plain = segue.method("mbr", samples=6)
    for prompt in PROMPTS:
        two = model.generate(prompt, method=both, max_tokens=8, seed=1)
        one = model.generate(prompt, method=plain, max_tokens=8, seed=1)
        assert two.candidates == one.candidates
    three = model.generate(PROMPTS[0], method=segue.method("quality_aware", samples=6, utility="chrf", keep=3), seed=1,
                           max_tokens=8)  # fmt: skip
    assert three.candidates is not None
    assert len(three.candidates) == 3


def test_fixed_reranking_gives_the_largest_feature_and_keeps_the_raw_likelihood(model: Model) -> None:
    answer = model.generate(PROMPTS[0], method="quality_aware", max_tokens=8, seed=2, ignore_eos=True)
    assert answer.candidates is not None
    assert len(answer.candidates) == 16
    for candidate, (feature,) in zip(answer.candidates, answer.trace[0]["features"], strict=True):
        assert candidate.score == feature == pytest.approx(candidate.logp / len(candidate.tokens))
    assert answer.stats.target_forwards == 8
    assert answer.stats.scorer_calls == 0
    assert answer.text == answer.candidates[0].text


def test_weights_are_tuned_on_answers_with_references(model: Model) -> None:
    """References that the likelier or the shorter answers resemble must be found by the weights."""
    method = segue.method("quality_aware", samples=8, features="logp,length,mean_logp", weights="0,0,1")
    answers = model.generate(PROMPTS, method=method, max_tokens=10, seed=3)
    references = [min(a.candidates, key=lambda c: c.logp).text for a in answers]  # the unlikeliest are right
    tuned = method.tuned(answers, references)
    assert len(tuned.weights) == 3
    metric = CHRF()

    def chrf(found: Any) -> float:
        return float(
            np.mean([metric.sentence_score(a.text, [r]).score for a, r in zip(found, references, strict=True)])
        )

    better = model.generate(PROMPTS, method=tuned, max_tokens=10, seed=3)
    assert chrf(better) > chrf(answers) + 20
    assert chrf(better) > 99  # a negative weight of the log-probability finds them all
    with pytest.raises(ValueError, match="4 answers and 1 references"):
        method.tuned(answers, references[:1])
    with pytest.raises(ValueError, match="has no 3 features"):
        method.tuned(model.generate(PROMPTS[:1], method="mbr", max_tokens=3), references[:1])


def shortness(prompt: str, texts: list[str]) -> list[float]:
    assert prompt == PROMPTS[0]
    return [-float(len(text)) for text in texts]


class Vowels:
    """A reward of somebody else."""

    def score(self, prompt: str, texts: list[str]) -> list[float]:
        return [float(sum(text.count(v) for v in "aeiou")) for text in texts]


def test_features_of_any_origin_are_scored_and_counted(model: Model) -> None:
    for feature, worth in (
        (f"{__name__}:shortness", lambda text: -len(text)),
        ((Vowels(),), lambda text: sum(text.count(v) for v in "aeiou")),
    ):
        method = segue.method("quality_aware", samples=5, features=feature)
        answer = model.generate(PROMPTS[0], method=method, max_tokens=8, seed=4)
        assert answer.stats.scorer_calls == 5
        assert [c.score for c in answer.candidates] == [worth(c.text) for c in answer.candidates]
        assert answer.candidates[0].score == max(c.score for c in answer.candidates)


def test_embedding_reverse_and_judge_are_features(model: Model) -> None:
    from sentence_transformers.util import cos_sim

    from segue.models.embedding import encoder

    method = segue.method("quality_aware", samples=4, features="embedding,reverse,judge", weights="1,0,0")
    answer = model.generate(PROMPTS[0], method=method, max_tokens=8, seed=5)
    assert answer.stats.scorer_calls == 12
    encode = encoder()
    for candidate, (cosine, backwards, grade) in zip(answer.candidates, answer.trace[0]["features"], strict=True):
        mine, prompt = encode([candidate.text, PROMPTS[0]])
        assert float(cos_sim(mine, prompt)) == pytest.approx(cosine, abs=1e-6)
        assert backwards < 0
        assert 1 < grade < 5


def test_a_prompt_that_does_not_fit_behind_an_answer_is_refused() -> None:
    world, other = network_world("llama"), network_world("gpt2").lm
    other.context_length = 40
    run = Run(world.lm, world.prompts[3], segue.api.make_settings())
    answer = Drawn([1] * 8, "", "1 " * 8, -1.0, "stop")
    with pytest.raises(
        ValueError, match=r"'reverse': tiny-gpt2-0 has a context of 40, .* of 8 tokens .* the prompt's 33"
    ):
        next(quality.reverse(run, other, [answer]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"features": "mean_logpp"}, "did you mean mean_logp"),
        ({"features": ""}, "at least one of"),
        ({"features": (3,)}, "an object with score"),
        ({"weights": "1,2"}, "1 numbers, one for each feature"),
        ({"weights": "much"}, "weights='much' is not allowed"),
        ({"keep": 3}, "keep=3 is not allowed"),
        ({"utility": "blue"}, "did you mean bleu"),
        ({"samples": 0}, "samples=0 is not allowed"),
    ],
)
def test_bad_fields_name_the_value_and_the_way_out(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segue.method("quality_aware", **fields)


def test_a_wrong_estimate_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quality.torch.cat
    monkeypatch.setattr(quality.torch, "cat", lambda parts: right([parts[1], parts[0]]))  # rows one place off
    with pytest.raises(LawBroken):
        hold(segue.method("quality_aware"), toy_world(3, 2))
