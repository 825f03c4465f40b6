"""The comparison of trees on toys: counting against the statistics, the interval against scipy's, claims both ways."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from segue.bench.ordering import Arm, Claim, Counts, count, gap, judge, markdown, ordering, spelled
from segue.data import Settings
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.dyspec import Dyspec
from segue.decode.speculative.lookahead import Lookahead
from segue.decode.speculative.multi_candidate import MultiCandidate
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.rasd import Rasd
from segue.decode.speculative.recursive import Recursive
from segue.decode.speculative.rest import Rest
from segue.decode.speculative.sparse_to_dense import SparseToDense
from segue.laws.base import decode
from segue.laws.worlds import World, neighbour, network_world, toy_world

SETTINGS = Settings(max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


def drawn(seed: int, mean: float) -> Counts:
    source = np.random.default_rng(seed)
    forwards = source.integers(8, 20, 40).astype(float)
    accepted = (forwards * source.gamma(4, mean / 4, 40)).round()
    return Counts(accepted, forwards, 12 * forwards)


@pytest.mark.parametrize("over", ["forwards", "nodes"])
def test_the_interval_is_scipys(over: str) -> None:
    ours, theirs = drawn(3, 2.0), drawn(4, 1.6)
    difference, low, high = gap(ours, theirs, over)
    four = (ours.accepted, getattr(ours, over), theirs.accepted, getattr(theirs, over))
    assert difference == pytest.approx(four[0].sum() / four[1].sum() - four[2].sum() / four[3].sum())
    expected = bootstrap(
        four,
        lambda a, b, c, d, axis=-1: a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.05 * width)
    assert high == pytest.approx(expected.high, abs=0.05 * width)
    # Unpaired it would be another: the same prompts are drawn for both arms.
    shuffled = Counts(*(part[::-1] for part in (ours.accepted, ours.forwards, ours.nodes)))
    assert gap(shuffled, theirs, over)[1:] != (low, high)


def test_swapped_arms_flip_the_sign() -> None:
    counts = {"far": drawn(3, 2.4), "near": drawn(3, 1.2)}
    claimed, swapped = judge(Claim("far", "near"), counts), judge(Claim("near", "far"), counts)
    assert (claimed["says"], swapped["says"]) == ("as claimed", "the other way")
    assert [swapped[k] for k in ("difference", "low", "high")] == pytest.approx(
        [-claimed[k] for k in ("difference", "high", "low")]
    )
    assert judge(Claim("far", "far"), counts)["says"] == "undecided"


def test_unequal_budgets_are_flagged() -> None:
    arm = drawn(3, 2.0)
    counts = {"twelve": arm} | {
        name: dataclasses.replace(arm, nodes=arm.nodes * share) for name, share in (("near", 0.99), ("ten", 10 / 12))
    }
    found = [judge(Claim(a, b), counts)["budget"] for a, b in (("twelve", "near"), ("twelve", "ten"), ("ten", "near"))]
    assert found == ["equal", "more", "fewer"]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("cls", [Dyspec, MultiCandidate, PromptLookup, Rasd, Lookahead, SparseToDense])
def test_without_a_reach_the_counts_are_the_statistics(cls: Any, temperature: float, world: World) -> None:
    """Every verification and nothing else: not the prompt, the draft's forwards, or a method's own of the target."""
    held = {"model": Dyspec(draft=neighbour(world.lm), nodes=4), "retrieval": PromptLookup()} if cls is Rasd else {}
    drafts = {"draft": neighbour(world.lm)} if cls in (Dyspec, MultiCandidate) else {}
    method = cls(**held, **drafts)
    settings = dataclasses.replace(SETTINGS, temperature=temperature)
    counts = count(world.lm, method, world.prompts, settings)
    world.lm.reset_stores()
    for number, prompt in enumerate(world.prompts):
        own = dataclasses.replace(settings, seed=number)
        (answer,) = decode(world.lm, method, [prompt], own)
        stats = answer.stats
        assert (counts.accepted[number], counts.forwards[number]) == (stats.accepted, stats.rounds)
        assert counts.nodes[number] == stats.drafted
        world.lm.reset_stores()
    assert counts.accepted.sum() > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_within_reach_every_tree_is_whole(temperature: float, world: World) -> None:
    """The end of an output cuts drafts: a chain's more than those of a broad tree."""
    draft = neighbour(world.lm)
    settings = dataclasses.replace(SETTINGS, temperature=temperature)
    methods = [
        DraftModel(draft=draft, gamma=12),
        Dyspec(draft=draft, nodes=12),
        MultiCandidate(draft=draft, candidates="4,1,1", replacement=True),
        Recursive(draft=draft, mode="beam", width=4, depth=3),
        Recursive(draft=draft, branches="3,3"),
    ]
    for method in methods:
        counts = count(world.lm, method, world.prompts, settings, reach=12, seeds=2)
        assert counts.nodes.tolist() == (12 * counts.forwards).tolist()
        assert counts.forwards.sum() > 10
    cut = count(world.lm, methods[0], world.prompts, settings)
    assert cut.mean()["nodes"] < 11.5


def test_seeds_are_of_samples(world: World) -> None:
    method = PromptLookup()
    once, twice = (count(world.lm, method, world.prompts, SETTINGS, seeds=seeds) for seeds in (1, 2))
    assert once.as_dict() == twice.as_dict()
    warm = dataclasses.replace(SETTINGS, temperature=1.0)
    once, twice = (count(world.lm, method, world.prompts, warm, seeds=seeds) for seeds in (1, 2))
    assert (twice.forwards > once.forwards).all()
    with pytest.raises(ValueError, match="seeds=0 is not allowed: at least 1"):
        count(world.lm, method, world.prompts, warm, seeds=0)


def test_the_table_of_a_comparison(world: World) -> None:
    draft = neighbour(world.lm)
    arms = [
        Arm("heap", Dyspec(draft=draft, nodes=12)),
        Arm("fixed", MultiCandidate(draft=draft, candidates="4,1,1")),
        Arm("short", MultiCandidate(draft=draft, candidates="4,1")),
    ]
    claims = [Claim("heap", "fixed"), Claim("fixed", "heap"), Claim("fixed", "short")]
    done: list[tuple[str, int, int]] = []
    table = ordering(
        world.lm,
        world.prompts,
        arms,
        claims,
        settings=SETTINGS,
        temperatures=(0.0, 0.9),
        reach=12,
        progress=lambda *told: done.append(told),
    )
    assert [(step, total) for _, step, total in done] == [(step, 6) for step in range(6)]
    assert len(table["arms"]) == len(table["claims"]) == 6
    accepted = {(r["arm"], r["temperature"]): r["accepted"] for r in table["arms"]}
    for record in table["arms"]:
        assert record["accepted"] == pytest.approx(record["per_node"] * record["nodes"])
    for record in table["claims"]:
        ours, theirs = (accepted[record[side], record["temperature"]] for side in ("better", "worse"))
        assert record["difference"] == pytest.approx(ours - theirs)
        assert record["low"] <= record["difference"] <= record["high"]
        assert record["budget"] == ("more" if record["worse"] == "short" else "equal")
    text = markdown(table).splitlines()
    assert len(text) == 6 + 6 + 5
    assert text[2].startswith("| heap | 0 |")
    assert "**more**: 12.0, 8.0" in text[-1]
    # What is kept is not decoded again, and gives the same table.
    kept = {(r["arm"], r["temperature"]): r for r in table["arms"]}
    assert set(kept) == {(arm.name, t) for arm in arms for t in (0.0, 0.9)}


def test_counts_that_are_kept_are_not_counted_again(world: World) -> None:
    store: dict[str, Any] = {}

    def known(arm: Arm, temperature: float, make: Any) -> Counts:
        key = f"{spelled(arm.method)} {temperature}"
        if key not in store:
            store[key] = make().as_dict()
        return Counts.from_dict(store[key])

    arms = [Arm("ten", PromptLookup()), Arm("two", PromptLookup(draft_tokens=2))]
    tables = []
    for _ in range(2):
        tables.append(ordering(world.lm, world.prompts, arms, [Claim("ten", "two")], settings=SETTINGS, known=known))
        assert len(store) == 4
        world.lm.forward = None  # type: ignore[method-assign, assignment]
    del world.lm.forward
    assert tables[0] == tables[1]


def test_what_is_no_comparison_is_refused(world: World) -> None:
    arm = Arm("a", PromptLookup())
    with pytest.raises(ValueError, match="two arms have one name among a, a"):
        ordering(world.lm, [], [arm, arm], [], settings=SETTINGS)
    with pytest.raises(ValueError, match="a claim is about 'b', which is no arm: there are a"):
        ordering(world.lm, [], [arm], [Claim("a", "b")], settings=SETTINGS)
    with pytest.raises(ValueError, match="40 prompts cannot be paired with 1"):
        gap(drawn(1, 1.0), Counts(*np.ones((3, 1))))


def test_a_prompt_that_fails_says_so(world: World) -> None:
    with pytest.raises(ValueError, match="needs a datastore"):
        count(world.lm, Rest(), world.prompts, SETTINGS)


def test_methods_are_spelled_with_what_they_hold() -> None:
    draft = neighbour(toy_world(3).lm)
    assert spelled(PromptLookup()) == "prompt_lookup()"
    method = Rasd(model=Dyspec(draft=draft, nodes=6), retrieval=PromptLookup(), retrieved=6)
    assert spelled(method) == "rasd(model=dyspec(nodes=6), retrieval=prompt_lookup(), retrieved=6)"
