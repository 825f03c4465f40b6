from __future__ import annotations

from typing import Any

import pytest

from segue.data import DraftTree, Settings
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.multi_candidate import MultiCandidate
from segue.laws.base import decode
from segue.laws.enumerate import distribution, total_variation
from segue.laws.oracle import TableOracle
from segue.laws.worlds import neighbour, network_world, toy_world
from segue.models.lm import LM

SETTINGS = Settings(temperature=1.0, max_tokens=3)


def apart(method: Any, vocabulary: int = 3) -> float:
    """Total variation between the enumerated law of a method and the model's own."""
    world = toy_world(vocabulary)
    assert isinstance(world.oracle, TableOracle)
    found = distribution(world.lm, method(neighbour(world.lm)), [0, 1], SETTINGS, most=200_000)
    assert found.accepting
    return total_variation(found.p, world.oracle.law([0, 1], SETTINGS))


@pytest.mark.parametrize("candidates", ["2", "3,2"])
@pytest.mark.parametrize("way", [{}, {"replacement": True}, {"naive": True}, {"naive": True, "replacement": True}])
def test_samples_follow_the_model(candidates: str, way: dict[str, bool]) -> None:
    assert apart(lambda draft: MultiCandidate(draft=draft, candidates=candidates, **way)) < 1e-6


class Forgetful(MultiCandidate):
    """Drawn without replacement, and verified as if with: a refused token keeps its mass in q."""

    def propose(self, run: Any, state: Any, budget: Any) -> Any:
        tree = yield from super().propose(run, state, budget)
        tree.replacement = True
        return tree


class Taken(MultiCandidate):
    """The likeliest tokens, verified as if they had been drawn."""

    def propose(self, run: Any, state: Any, budget: Any) -> Any:
        tree = DraftTree.root(run.ids[-1])
        (row,) = yield from state.rows(run.ids, tree)
        tree.q[0] = q = run.target.p(row, run.ids)
        tree.replacement = False
        for token in q.topk(2).indices.tolist():
            tree.add(0, token, sampled=True)
        return tree


@pytest.mark.parametrize(("wrong", "least"), [(Forgetful, 1e-3), (Taken, 0.01)])
def test_a_wrong_rule_is_found_out(wrong: type, least: float) -> None:
    assert apart(lambda draft: wrong(draft=draft, candidates="2")) > least


def test_single_candidates_are_a_draft_model_draw_for_draw() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm)
    for seed in range(6):
        settings = Settings(max_tokens=24, temperature=0.9, seed=seed)
        (tree,) = decode(world.lm, MultiCandidate(draft=draft, candidates="1,1,1"), [world.prompts[1]], settings)
        (chain,) = decode(world.lm, DraftModel(draft=draft, gamma=3), [world.prompts[1]], settings)
        assert tree.tokens == chain.tokens
        assert (tree.stats.drafted, tree.stats.accepted) == (chain.stats.drafted, chain.stats.accepted)


def accepted(lm: LM, draft: LM, method: Any, prompts: list[list[int]]) -> float:
    """Accepted tokens a round, over many samples."""
    kept = rounds = 0
    for seed in range(30):
        for answer in decode(lm, method, prompts, Settings(max_tokens=24, temperature=1.0, seed=seed)):
            kept += answer.stats.accepted
            rounds += answer.stats.rounds
    return kept / rounds


def test_more_candidates_keep_more_and_without_replacement_most() -> None:
    world = network_world("llama")
    draft = neighbour(world.lm, 5)
    ways = {
        "single": MultiCandidate(draft=draft, candidates="1,1"),
        "with replacement": MultiCandidate(draft=draft, candidates="3,2", replacement=True),
        "without": MultiCandidate(draft=draft, candidates="3,2"),
    }
    rates = {name: accepted(world.lm, draft, method, world.prompts) for name, method in ways.items()}
    print(f"accepted tokens a round: {rates}")
    assert rates["single"] < rates["with replacement"] < rates["without"]


def test_a_round_takes_one_draft_forward_per_level() -> None:
    world = network_world("llama")
    (answer,) = decode(
        world.lm,
        MultiCandidate(draft=neighbour(world.lm), candidates="4,2,2"),
        [world.prompts[1]],
        Settings(max_tokens=33),
    )
    # The first round reads the prompt as well.
    assert answer.stats.draft_forwards <= 3 * answer.stats.rounds + 1
    assert answer.stats.drafted >= (answer.stats.rounds - 2) * (4 + 8 + 16)


@pytest.mark.parametrize("candidates", ["", "4,x", "0,2", "2,,2", "-1"])
def test_fields_are_checked(candidates: str) -> None:
    with pytest.raises(ValueError, match="numbers of at least 1, like 4,2,2"):
        MultiCandidate(candidates=candidates)
