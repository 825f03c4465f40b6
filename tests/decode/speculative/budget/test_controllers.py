"""Controllers on synthetic acceptance with a known optimum: convergence, adaptation, regret."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch

from segue.data import DraftTree
from segue.decode.speculative.budget import CONTROLLERS, controller
from segue.decode.speculative.budget.bandit import Bandit
from segue.decode.speculative.budget.base import Costs, Planner
from segue.decode.speculative.budget.calibration import Calibration
from segue.decode.speculative.budget.expected_gain import ExpectedGain
from segue.decode.speculative.budget.thompson import LONGEST, best_length

COSTS = Costs(verify=lambda rows: 1.0 + 0.05 * (rows - 1), draft=lambda tokens: 0.1 * tokens)


def play(planner: Planner, alpha: Callable[[int], float], rounds: int, seed: int = 0) -> tuple[float, list[int]]:
    """Tokens per cost, and the depths drafted, where every token is accepted with chance alpha(round)."""
    source = random.Random(seed)
    tokens = cost = 0.0
    depths = []
    for number in range(rounds):
        depth = planner.plan(LONGEST).depth
        depths.append(depth)
        tree = DraftTree.chain([0] * (depth + 1), source="draft")
        kept = 0
        while kept < depth and source.random() < alpha(number):
            kept += 1
        planner.learn(tree, [0] * kept + [1])
        tokens += kept + 1
        cost += COSTS.draft(depth) + COSTS.verify(depth + 1)
    return tokens / cost, depths


def best_fixed(alpha: float) -> tuple[int, float]:
    """The best draft length and its rate, by enumeration."""
    rates = {
        n: sum(alpha**i for i in range(n + 1)) / (COSTS.draft(n) + COSTS.verify(n + 1)) for n in range(LONGEST + 1)
    }
    return max(rates.items(), key=lambda r: r[1])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.6, 0.9])
@pytest.mark.parametrize("name", ["thompson", "gain"])
def test_the_best_fixed_length_is_found(name: str, alpha: float) -> None:
    optimum, rate = best_fixed(alpha)
    assert best_length(alpha, COSTS, LONGEST) == optimum
    reached, depths = play(controller(name)(COSTS), lambda n: alpha, 800)
    late = sorted(depths[-300:])
    assert abs(late[150] - optimum) <= (1 if alpha < 0.8 else 2)
    assert reached > 0.94 * rate


@pytest.mark.parametrize("name", ["thompson", "gain"])
def test_a_switch_of_the_text_is_followed(name: str) -> None:
    planner = controller(name)(COSTS)
    _, depths = play(planner, lambda n: 0.9 if n < 300 else 0.1, 700)
    before, after = sorted(depths[200:300])[50], sorted(depths[500:700])[100]
    assert before >= 4
    assert after <= 1
    _, again = play(planner, lambda n: 0.9, 400)
    assert sorted(again[-100:])[50] >= 4


Beside = Callable[[DraftTree, random.Random], None]


def agreed(tree: DraftTree, source: random.Random) -> None:
    """Retrieval proposes the same now and then, and something deeper that is always right."""
    for node in range(1, 1 + source.choice((0, len(tree) - 1))):
        tree.source[node] += "+found"
    deep = tree.add(0, 7, source="found")
    for _ in range(3):
        deep = tree.add(deep, 7, source="found")


def scored(tree: DraftTree, source: random.Random) -> None:
    """The drafter tells how sure it is: never the same number twice."""
    tree.score[1:] = [source.random() for _ in tree.score[1:]]


@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("beside", [agreed, scored])
def test_depth_follows_who_drafts_step_by_step(beside: Beside, alpha: float) -> None:
    """Whatever hangs beside its chain, and whatever its scores are: the best length for its own acceptance."""
    source, planner = random.Random(0), ExpectedGain(COSTS)
    depths = []
    for _ in range(800):
        depth = planner.plan(LONGEST).depth
        depths.append(depth)
        tree = DraftTree.chain([0] * (depth + 1), source="draft")
        tree.rows = {node: torch.zeros(0) for node in range(depth)}
        beside(tree, source)
        kept = 0
        while kept < depth and source.random() < alpha:
            kept += 1
        planner.learn(tree, [0] * kept + [1])
    assert abs(sorted(depths[-300:])[150] - best_fixed(alpha)[0]) <= (1 if alpha < 0.8 else 2)


def test_a_drafter_that_was_given_up_is_tried_again() -> None:
    planner = controller("gain")(COSTS)
    _, bad = play(planner, lambda n: 0.0, 300)
    assert bad.count(0) > 240
    _, good = play(planner, lambda n: 0.9, 600)
    assert sorted(good[-100:])[50] >= 4


def test_what_costs_nothing_is_not_bounded_by_the_planned_depth() -> None:
    planner = controller("gain")(COSTS)
    while planner.plan(9).depth:
        play(planner, lambda n: 0.0, 1)
    assert planner.plan(9).deepest == 9
    assert controller("gain")(Costs(COSTS.verify)).plan(9).deepest == 9
    assert controller("heuristic")(COSTS).plan(3).deepest == 3


def taught(right: int, wrong: int) -> ExpectedGain:
    """A planner that saw a drafter's three tokens right so many times, and its first one wrong so many."""
    planner = ExpectedGain(Costs(verify=COSTS.verify))
    for count, tokens in ((right, [1, 2, 3, 9]), (wrong, [9])):
        for _ in range(count):
            planner.learn_levels(DraftTree.chain([0, 1, 2, 3], source="draft"), tokens, "draft")
    return planner


def test_a_costly_drafter_goes_on_beside_a_tree_as_deep_as_it_adds_for_its_time() -> None:
    alone, sure = DraftTree.root(0), DraftTree.chain([0, 5, 6, 7, 8], source="found")

    def asked(planner: ExpectedGain, tree: DraftTree, seconds: float) -> int:
        budget = planner.beside(tree, "draft", lambda tokens: seconds * tokens, 3)
        return 0 if budget is None else budget.depth

    assert asked(taught(60, 0), alone, 0.1) == 3
    assert asked(taught(60, 0), alone, 2.0) == 0  # a token of its own costs more than a forward
    assert asked(taught(0, 60), alone, 0.1) == 0
    known = taught(60, 0)
    for _ in range(60):
        known.calibration.learn(sure, [5, 6, 7, 8])
    assert asked(known, sure, 0.1) == 0
    for _ in range(200):
        known.calibration.learn(sure, [9])
    assert asked(known, sure, 0.1) == 3


def test_what_one_more_pass_must_promise_is_its_price_in_tokens() -> None:
    budget = taught(60, 0).beside(DraftTree.root(0), "draft", lambda tokens: 0.1 * tokens, 3)
    assert budget is not None
    # Close to four tokens for a forward of ten rows and three tenths; a level more is a tenth and three rows.
    assert budget.least == pytest.approx((0.1 + 0.15) * 4 / (COSTS.verify(10) + 0.3), rel=0.15)


def test_a_tree_that_was_weighed_is_trimmed_as_any_other() -> None:
    tree = DraftTree.from_paths(0, [[1, 2, 3], [4, 5], [6]], source="found")
    tree.score = [1.0, 0.8, 0.7, 0.6, 0.3, 0.2, 0.02]
    one, other = ExpectedGain(COSTS), ExpectedGain(COSTS)
    one.beside(tree, "draft", lambda tokens: 9.0, 3)
    assert one.trim(tree).tokens == other.trim(tree).tokens
    longer = tree.keep(set(range(len(tree))))
    longer.add(0, 9, score=0.9, source="found")
    one.beside(tree, "draft", lambda tokens: 9.0, 3)
    assert one.trim(longer).tokens == other.trim(longer).tokens != other.trim(tree).tokens


def test_scores_that_are_nearly_alike_are_one_kind() -> None:
    """A network never gives the same number twice, and its nodes are learned of all the same."""
    source, calibration, tree = random.Random(0), Calibration(), DraftTree.chain([0, 1], source="net")
    for _ in range(100):
        tree.score[1] = source.uniform(0.79, 0.81)
        calibration.learn(tree, [1 if source.random() < 0.3 else 2])
    tree.score[1] = 0.805
    assert calibration.survivals(tree)[1] == pytest.approx(0.3, abs=0.12)
    tree.score[1] = 0.2
    assert calibration.survivals(tree)[1] == pytest.approx(0.2, abs=0.01)


def test_regret_grows_slower_than_the_rounds() -> None:
    """The loss against the best fixed length, per round, falls as rounds go on."""
    _, rate = best_fixed(0.6)
    losses = []
    for rounds in (50, 400, 3000):
        reached = sum(play(controller("thompson")(COSTS), lambda n: 0.6, rounds, seed)[0] for seed in range(5)) / 5
        losses.append(rate - reached)
    assert losses[2] < losses[0]
    assert losses[2] < 0.05 * rate


@pytest.mark.parametrize("name", ["ema", "heuristic"])
def test_depth_follows_acceptance(name: str) -> None:
    _, high = play(controller(name)(COSTS), lambda n: 0.95, 200)
    _, low = play(controller(name)(COSTS), lambda n: 0.05, 200)
    assert sum(high[-50:]) > 3 * sum(low[-50:])
    assert min(low) >= 1


def test_ema_does_not_flip_between_tiers() -> None:
    _, depths = play(controller("ema")(COSTS), lambda n: 0.6, 600)
    assert sum(a != b for a, b in itertools.pairwise(depths[100:])) < 40


def test_unknown_controllers_are_refused_with_the_others_named() -> None:
    with pytest.raises(ValueError, match=r"budget='gian'.*gain"):
        controller("gian")
    assert list(CONTROLLERS) == ["gain", "fixed", "heuristic", "ema", "thompson"]


def brute_force(survival: list[float], verify: Callable[[int], float]) -> float:
    ranked = sorted(survival, reverse=True)
    return max((1 + sum(ranked[:k])) / verify(k + 1) for k in range(len(ranked) + 1))


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.1, 1.0])
def test_a_tree_is_cut_to_the_best_nodes_for_its_cost(slope: float) -> None:
    source = random.Random(4)
    for _ in range(30):
        tree = DraftTree.root(0)
        for node in range(1, 20):
            tree.add(source.randrange(node), node, score=round(source.uniform(0.05, 0.85), 2), source="x")
        costs = Costs(verify=lambda rows: 1.0 + slope * (rows - 1))
        planner = ExpectedGain(costs)
        survival = planner.calibration.survivals(tree)[1:]
        cut = planner.trim(tree)
        assert planner.rate == pytest.approx(brute_force(survival, costs.verify))
        kept = 1 + sum(planner.calibration.survivals(cut)[1:])
        assert kept / costs.verify(len(cut)) == pytest.approx(planner.rate)
    if slope == 0.0:
        assert len(cut) == 20
    if slope == 1.0:
        assert len(cut) <= 2


def test_drawn_tokens_are_never_chosen_among() -> None:
    tree = DraftTree.root(0)
    tree.add(0, 1, sampled=True, score=0.001)
    planner = ExpectedGain(Costs(verify=lambda rows: float(rows)))
    assert planner.trim(tree) is tree


def test_estimates_start_from_the_score_learn_and_forget() -> None:
    overall = Calibration()
    own = Calibration(overall)
    key = ("x", 0.5, 1)
    assert own.estimate(key) == 0.5
    tree = DraftTree.root(0)
    tree.add(0, 7, score=0.5, source="x")
    for _ in range(60):
        own.learn(tree, [8])
    assert own.estimate(key) < 0.05
    assert Calibration(overall).estimate(key) < 0.1
    other = DraftTree.root(0)
    other.add(0, 7, score=0.9, source="y")
    for _ in range(2000):
        own.learn(other, [7])
    assert own.estimate(key) > 0.4
    assert own.estimate(("y", 0.9, 1)) > 0.95


def test_a_proposal_is_judged_beyond_what_was_verified() -> None:
    calibration = Calibration()
    tree = DraftTree.from_paths(0, [[1, 2, 3]], source="x")
    before = calibration.estimate(("x", 1.0, 3))
    calibration.learn(tree, [1, 2, 9])
    assert calibration.estimate(("x", 1.0, 3)) < before
    assert calibration.estimate(("x", 1.0, 2)) > 0.9


RATES = {"a": 1.0, "b": 1.6, "c": 0.5}


def run_bandit(rates: Callable[[int], dict[str, float]], rounds: int, seed: int = 1) -> list[str]:
    source = random.Random(seed)
    bandit = Bandit(dict.fromkeys(RATES, (2.5, 1.0)))
    chosen = []
    for number in range(rounds):
        arm = bandit.choose()
        chosen.append(arm)
        # Tokens vary from round to round around the arm's mean.
        bandit.learn(arm, max(0.0, rates(number)[arm] + source.uniform(-0.5, 0.5)), 1.0)
    return chosen


def test_the_bandits_regret_is_bounded() -> None:
    for seed in range(5):
        chosen = run_bandit(lambda n: RATES, 3000, seed)
        regret = sum(1.6 - RATES[arm] for arm in chosen)
        assert regret < 0.10 * 1.6 * 3000
        assert chosen[-500:].count("b") > 400


def test_the_bandit_follows_a_switch() -> None:
    later = {"a": 2.2, "b": 0.4, "c": 0.5}
    chosen = run_bandit(lambda n: RATES if n < 1000 else later, 2000)
    assert chosen[600:1000].count("b") > 320
    assert chosen[-400:].count("a") > 320


def test_a_bandit_needs_an_arm() -> None:
    with pytest.raises(ValueError, match="needs an arm"):
        Bandit({})
