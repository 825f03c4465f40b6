from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from segue.data import Settings
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.warped import warped
from segue.laws.worlds import World, toy_world
from segue.models.transformers.lm import TransformersLM


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        (Settings(temperature=0.6), [hf.TemperatureLogitsWarper(0.6)]),
        (Settings(temperature=1.0, top_k=3), [hf.TopKLogitsWarper(3)]),
        (Settings(temperature=1.0, top_p=0.6), [hf.TopPLogitsWarper(0.6)]),
        (Settings(temperature=1.0, min_p=0.2), [hf.MinPLogitsWarper(0.2)]),
        (Settings(temperature=1.0, typical_p=0.5), [hf.TypicalLogitsWarper(0.5)]),
        (
            Settings(temperature=1.4, top_k=6, top_p=0.8, min_p=0.1),
            [
                hf.TemperatureLogitsWarper(1.4),
                hf.TopKLogitsWarper(6),
                hf.TopPLogitsWarper(0.8),
                hf.MinPLogitsWarper(0.1),
            ],
        ),
    ],
)
def test_the_naive_formulas_are_those_of_transformers(settings: Settings, warpers: list[hf.LogitsProcessor]) -> None:
    rows = torch.randn(40, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    theirs = hf.LogitsProcessorList(warpers)(torch.empty(40, 0, dtype=torch.long), rows.clone()).softmax(-1)
    ours = torch.tensor([warped(row.tolist(), settings) for row in rows], dtype=torch.float64)
    assert (theirs - ours).abs().max() < 1e-12


def test_the_law_of_a_table_is_a_distribution() -> None:
    oracle = TableOracle(toy_world(3, eos=2).lm)
    law = oracle.law([0, 1], Settings(temperature=1.0, max_tokens=3))
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert all(text[-1] == 2 or len(text) == 3 for text in law)
    ignoring = oracle.law([0, 1], Settings(temperature=1.0, max_tokens=3, ignore_eos=True))
    assert len(ignoring) == 27


def test_a_table_answers_greedily() -> None:
    lm = toy_world(3, eos=2).lm
    answer = TableOracle(lm).answer([0, 1], Settings(max_tokens=5, ignore_eos=True))
    context = [0, 1]
    for token in answer.tokens:
        assert token == int(lm.logits_after(context).argmax())  # type: ignore[attr-defined]
        context.append(token)
    assert answer.reason == "length"
    ended = TableOracle(lm).answer([0, 1], Settings(max_tokens=5, stop_tokens=(answer.tokens[0],)))
    assert (ended.tokens, ended.reason) == (answer.tokens[:1], "stop")


def test_a_network_is_asked_on_a_copy(llama: World) -> None:
    assert isinstance(llama.lm, TransformersLM)
    oracle = NetworkOracle(llama.lm)
    before = llama.lm.network.config._attn_implementation
    first = oracle.answer([5, 6, 7], Settings(max_tokens=4))
    assert oracle.answer([5, 6, 7], Settings(max_tokens=4)) is first
    assert llama.lm.network.config._attn_implementation == before == "segue"
    assert first.tokens == first.scores.argmax(-1).tolist()
    for unknown in (Settings(presence_penalty=1.0), Settings(stop=("x",))):
        with pytest.raises(ValueError, match="this oracle"):
            oracle.answer([5], unknown)


def test_a_network_has_no_table(llama: World) -> None:
    with pytest.raises(ValueError, match="not enumerable"):
        TableOracle(llama.lm)
