from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from segue.card import Card, Paper, SameDistribution
from segue.data import DraftTree, Settings, Want
from segue.decode.plain import Plain
from segue.laws.base import LawBroken
from segue.laws.enumerate import ScriptedChance, TooManyBranches, distribution, total_variation, walk
from segue.laws.worlds import toy_world
from segue.models.run import Decoder, Forward, Run


def test_every_branch_is_walked_once_with_its_weight() -> None:
    p = torch.tensor([0.0, 0.5, 0.25, 0.25])

    def play(chance: ScriptedChance) -> tuple[int, ...]:
        first = chance.index(p)
        if chance.keeps(0.3, 0.4):
            return (first,)
        return (first, chance.index(p))

    outcomes = list(walk(play))
    assert len({tokens for _, tokens in outcomes}) == len(outcomes) == 3 + 9
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1, abs=1e-12)
    weights = {tokens: weight for weight, tokens in outcomes}
    assert weights[1,] == pytest.approx(0.5 * 0.75)
    assert weights[1, 2] == pytest.approx(0.5 * 0.25 * 0.25)


@pytest.mark.parametrize(
    ("p", "q", "answers"),
    [(0.0, 0.5, {False: 1}), (0.0, 0.0, {False: 1}), (0.5, 0.5, {True: 1}), (0.6, 0.5, {True: 1}),
     (0.1, 0.0, {True: 1}), (0.1, 0.4, {True: 0.25, False: 0.75})],
)  # fmt: skip
def test_keeps_has_the_branches_of_the_real_source(p: float, q: float, answers: dict[bool, float]) -> None:
    assert {answer: w for w, answer in walk(lambda chance: chance.keeps(p, q))} == pytest.approx(answers)


def test_index_takes_what_is_not_normalised_and_refuses_what_is_no_distribution() -> None:
    assert {t: w for w, t in walk(lambda chance: chance.index(torch.tensor([0.0, 3.0, 1.0])))} == {1: 0.75, 2: 0.25}
    for wrong in ([0.0, 0.0], [0.5, -0.1], [float("nan"), 1.0]):
        with pytest.raises(LawBroken):
            ScriptedChance().index(torch.tensor(wrong))
    with pytest.raises(LawBroken):
        ScriptedChance().keeps(float("nan"), 1.0)


def test_an_enumeration_that_is_too_large_says_so() -> None:
    world = toy_world(3)
    with pytest.raises(TooManyBranches, match="more than 50 branches"):
        distribution(world.lm, Plain(), [0], Settings(temperature=1.0, max_tokens=4), most=50)


def test_plain_decoding_has_one_branch_per_output() -> None:
    world = toy_world(3, eos=2)
    found = distribution(world.lm, Plain(), [0], Settings(temperature=1.0, max_tokens=3))
    assert found.branches == len(found.p) == 1 + 2 * 1 + 4 * 3  # (2), (x, 2), (x, y, any)
    assert (found.accepting, found.refusing) == (0, 0)


@dataclass(frozen=True)
class Forgetful:
    """Keeps a count of requests on itself, and draws once more in every other one."""

    card = Card(paper=Paper(id="", title="", year=0), claim=None, exact=(SameDistribution(),))
    seen: list[int] = field(default_factory=list)

    def run(self, run: Run) -> Decoder[None]:
        self.seen.append(0)
        scores = yield from run.prefill()
        if len(self.seen) % 2 == 0:
            run.chance.keeps(0.5, 1.0)
        token = run.pick(scores, -1)
        while run.emit([token], scores, [-1]):
            scores = yield Forward(run.sequence, DraftTree.root(token), Want(logits="last"))
            run.sequence.commit([0])
            token = run.pick(scores, -1)


def test_state_that_is_not_put_back_is_found() -> None:
    with pytest.raises(LawBroken, match="a replay met"):
        distribution(toy_world(3).lm, Forgetful(), [0], Settings(temperature=1.0, max_tokens=2))


def test_stores_are_put_back_before_every_replay() -> None:
    world = toy_world(3)
    world.lm.stores["a drafter"] = torch.zeros(2)

    @dataclass(frozen=True)
    class Learns(Plain):
        def run(self, run: Run) -> Decoder[None]:
            assert run.lm.stores["a drafter"].sum() == 0
            run.lm.stores["a drafter"] += 1
            return super().run(run)

    distribution(world.lm, Learns(), [0], Settings(temperature=1.0, max_tokens=2))
    assert world.lm.stores["a drafter"].sum() == 0


def test_total_variation() -> None:
    assert total_variation({(0,): 1.0}, {(1,): 1.0}) == 1
    assert total_variation({(0,): 0.5, (1,): 0.5}, {(0,): 0.25, (1,): 0.5, (2,): 0.25}) == 0.25
