"""The client's prediction as a draft: the laws of its card, a wrong rule, and counts worked out by hand."""

from __future__ import annotations

import pytest
import torch

from segue.data import Settings
from segue.decode.speculative import base
from segue.laws.base import decode
from segue.laws.less_work import less_work
from segue.laws.same_distribution import divergence, same_distribution
from segue.laws.same_tokens import Compared, same_tokens
from segue.laws.worlds import network_world, toy_world
from segue.models.toy import ToyLM
from segue.serve.answers import usage
from segue.serve.prediction import Prediction
from segue.serve.worker import Ended, Piece
from tests.laws.test_mutations import MATCH, Mutation

SAMPLED = Settings(temperature=1.0, max_tokens=3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_greedy_output_is_plain_greedys_whatever_is_predicted(family: str) -> None:
    world = network_world(family)
    settings = Settings(max_tokens=16)
    report = Compared()
    right = world.oracle.answer(world.prompts[1], settings).tokens
    edited = [*right[:6], 1, 2, *right[8:]]
    for tokens in (right, edited, right[5:], list(range(24))):
        report += same_tokens(Prediction(tokens=tuple(tokens)), world.lm, world.oracle, world.prompts[:2], settings)
    assert report.tokens > 200
    assert len(report.near_ties) < 3


def test_a_right_prediction_saves_forwards() -> None:
    world = network_world("llama")
    prompt = world.prompts[2]
    right = world.oracle.answer(prompt, Settings(max_tokens=48, ignore_eos=True)).tokens
    stats = less_work(Prediction(tokens=tuple(right)), world.lm, prompt)
    assert stats.target_forwards <= 1 + 3 + 1  # 47 tokens behind the first, 17 a forward, and the prompt's


@pytest.mark.parametrize("tokens", [(0, 1, 2, 0), (1, 1, 1), (2, 0, 1, 2, 0, 1)])
def test_samples_follow_the_model(tokens: tuple[int, ...]) -> None:
    accepting = refusing = 0
    for seed in range(3):
        world = toy_world(3, seed=seed)
        for settings in (SAMPLED, Settings(temperature=0.7, top_p=0.9, frequency_penalty=0.8, max_tokens=3)):
            found = same_distribution(Prediction(tokens=tokens), world.lm, world.prompts[-1], settings)
            accepting += found.accepting
            refusing += found.refusing
    assert accepting > 0
    assert refusing > 0


RULES = {
    "predicted tokens always kept": Mutation(
        base, "accept", MATCH, "next(iter(children[node]), None)", lambda lm: Prediction(tokens=(0, 1, 2, 0)), 0.5
    ),
    "a second draw after a miss": Mutation(
        base, "accept", "return path, token", "return path, chance.index(p)", lambda lm: Prediction(tokens=(0, 1)), 0.05
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_rule_breaks_the_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = RULES[name]

    def farthest() -> float:
        worlds = [toy_world(3, seed=seed) for seed in range(3)]
        return max(divergence(mutation.method(w.lm), w.lm, w.prompts[-1], SAMPLED) for w in worlds)

    assert farthest() < 1e-9
    mutation.put(monkeypatch)
    assert farthest() > mutation.distance


def circle() -> ToyLM:
    """Writes 0 1 2 3 0 1 2 3 ..."""
    lm = ToyLM(4, 1)
    lm.table = torch.eye(4, dtype=torch.float64)[[1, 2, 3, 0]]
    lm.context_length = 64
    return lm


@pytest.mark.parametrize(
    ("max_tokens", "drafted", "accepted"),
    [
        # Behind "1" the prediction 1 2 0 3 0 1 goes on with 2 0 3 0 1: 2 stays, the rest does not, and 3 is written.
        (7, 5 + 2, 1 + 2),  # "3" is found again before 0 1: both stay, and 2 is written; then there is room for one
        # "1 2" is found at the beginning, before 0 3: nothing stays; 3 is written and found before 0, which stays.
        (9, 5 + 2 + 2 + 1, 1 + 2 + 0 + 1),
    ],
)
def test_counts_are_those_worked_out_by_hand(max_tokens: int, drafted: int, accepted: int) -> None:
    (answer,) = decode(circle(), Prediction(tokens=(1, 2, 0, 3, 0, 1)), [[0]], Settings(max_tokens=max_tokens))
    assert answer.tokens == [(1 + i) % 4 for i in range(max_tokens)]
    told = usage([Ended(0, Piece(0, "", []), answer, 0, [])], 1)
    assert told["completion_tokens"] == max_tokens
    assert told["completion_tokens_details"] == {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": drafted - accepted,
    }
