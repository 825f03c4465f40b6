"""The distribution that tokens are drawn from equals what transformers' generate would draw from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from segue.api import Model
from segue.data import Settings
from segue.models.toy import ToyLM
from segue.models.warp import Target
from tests.models.families import Twins, twins

PROMPT = [5, 9, 17, 33, 5, 9, 17]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("llama")


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.7}, {"temperature": 0.7}),
    ({"temperature": 1.0, "top_k": 5}, {"top_k": 5}),
    ({"temperature": 1.0, "top_p": 0.8}, {"top_p": 0.8}),
    ({"temperature": 1.3, "min_p": 0.2}, {"temperature": 1.3, "min_p": 0.2}),
    ({"temperature": 1.0, "typical_p": 0.5}, {"typical_p": 0.5}),
    ({"temperature": 1.0, "repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    (
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    ),
    ({"temperature": 1.0, "logit_bias": {7: 3.0, 8: -9.0}}, {"sequence_bias": [[[7], 3.0], [[8], -9.0]]}),
]


@pytest.mark.parametrize(("ours", "theirs"), CASES)
def test_sampling_distribution_equals_transformers(pair: Twins, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=1,
        pad_token_id=2,
        output_scores=True,
        return_dict_in_generate=True,
        **{"top_k": 0, **theirs},
    )
    ids = torch.tensor([PROMPT])
    out = pair.oracle.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    expected = torch.softmax(out.scores[0][0], -1)
    p = Target(Settings(**ours), pair.lm, len(PROMPT)).p(pair.logits(PROMPT)[-1], PROMPT)
    torch.testing.assert_close(p, expected, atol=1e-5, rtol=1e-4)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    lm = ToyLM(vocab_size=4)
    target = Target(Settings(presence_penalty=0.5, frequency_penalty=0.25), lm, prompt_length=2)
    logits = torch.zeros(4)
    assert target.processed(logits, [0, 1, 1, 2, 2, 2]).tolist() == [0.0, -0.75, -1.25, 0.0]
    assert logits.tolist() == [0.0] * 4  # the model's own logits stay as they are


def test_greedy_needs_no_processing_unless_asked() -> None:
    lm = ToyLM()
    assert Target(Settings(top_k=3, top_p=0.5), lm, 1).argmax  # warpers cannot move the arg-max
    assert not Target(Settings(repetition_penalty=1.1), lm, 1).argmax
    assert not Target(Settings(temperature=1.0), lm, 1).argmax


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", 1e-9),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", -0.1),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", True),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("min_tokens", 999),
        ("logprobs", -1),
        ("seed", 2**70),
        ("stop", [""]),
        ("bad_words", [3]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {-4: 1.0}),
        ("logit_bias", {4: float("nan")}),
    ],
)
def test_silly_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_values_that_need_the_model_are_refused_by_name() -> None:
    lm = ToyLM()
    with pytest.raises(ValueError, match="logit_bias names token 9"):
        Target(Settings(logit_bias={9: 1.0}), lm, 1)
    with pytest.raises(ValueError, match="bad_words needs a tokenizer"):
        Target(Settings(bad_words=("no",)), lm, 1)


def test_bad_words_never_appear() -> None:
    import segue

    model = segue.model(dtype="float32")
    prompt = "Once upon a time"
    free = model.generate(prompt, max_tokens=24).text
    word = max(free.split(), key=len).strip('.,;"')
    for method in ("plain", "token_recycling"):
        banned = model.generate(prompt, method, max_tokens=24, bad_words=[word])
        assert word in free
        assert word not in banned.text
    assert isinstance(model, Model)
