"""Ablations: counts against the statistics and against trees counted by hand, intervals against scipy's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from segue.bench.ablation import Tally, compare, oracle, parts, right, tally
from segue.data import DraftTree, Settings, Want
from segue.decode.plain import Plain
from segue.decode.speculative.base import Outcome
from segue.decode.speculative.blockwise_parallel import BlockwiseParallel
from segue.decode.speculative.eesd import EESD
from segue.decode.speculative.jakiro import Jakiro
from segue.decode.speculative.mlp_speculator import MLPSpeculator
from segue.laws.base import decode
from segue.laws.worlds import World, network_world
from segue.models.draft import Draft
from segue.models.heads import KINDS, DraftNetwork, fitted
from segue.models.run import Run

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


def fresh(world: World, kind: str, **numbers: int) -> DraftNetwork:
    return fitted(KINDS[kind].fresh(world.lm, 0, **numbers), world.lm)


def test_plain_decoding_takes_a_forward_for_every_token(world: World) -> None:
    found = tally(world.lm, Plain(), world.prompts, SETTINGS)
    assert found.counts["tokens"] == found.counts["forwards"] == found.counts["depth"] == [23] * len(world.prompts)
    assert found.figure("tokens per forward") == found.figure("tokens per depth") == 1
    assert found.counts["drafted"] == found.counts["passes"] == [0] * len(world.prompts)


@pytest.mark.parametrize("cls", [BlockwiseParallel, MLPSpeculator, Jakiro])
def test_counts_are_the_statistics(world: World, cls: Any) -> None:
    method = cls(heads=fresh(world, cls.network.kind))
    found = tally(world.lm, method, world.prompts, SETTINGS, network=method.heads)
    answers = [decode(world.lm, method, [prompt], SETTINGS)[0] for prompt in world.prompts]
    assert found.answers == [answer.tokens for answer in answers]
    stats = [answer.stats for answer in answers]
    for name in ("rounds", "accepted", "drafted"):
        assert found.counts[name] == [getattr(s, name) for s in stats], name
    assert found.counts["forwards"] == [s.target_forwards - s.prefill_forwards for s in stats]
    assert found.figure("tokens per forward") == sum(s.tokens - 1 for s in stats) / sum(found.counts["forwards"])
    # Side by side every run counts its own.
    alone = [tally(world.lm, method, [prompt], SETTINGS, network=method.heads) for prompt in world.prompts]
    for name, counts in found.counts.items():
        assert counts == [one.counts[name][0] for one in alone], name
    assert len(set(found.counts["passes"])) > 1


@pytest.mark.parametrize("experts", [1, 2])
def test_two_experts_take_a_pass_less(world: World, experts: int) -> None:
    """A tree takes a pass for each of its depths; with a second output the last depth takes none."""
    method = Jakiro(heads=fresh(world, "jakiro", experts=experts), depth=4, width=2)
    found = tally(world.lm, method, world.prompts[:1], SETTINGS, network=method.heads)
    (answer,) = decode(world.lm, method, world.prompts[:1], SETTINGS)
    reached = answer.stats.offered  # at d: rounds with a tree of depth d + 1 or more
    assert len(reached) == 4
    assert found.counts["passes"] == [sum(reached) - (reached[1] if experts == 2 else 0)]


def test_layers_of_early_exits_are_counted(world: World) -> None:
    """A round of gamma drafted tokens: gamma + 1 times the layers before the exit, then the rest once."""
    network: Any = fresh(world, "eesd", exit=1)
    layers = world.lm.layers
    method = EESD(heads=network, budget="fixed", gamma=3)
    found = tally(world.lm, method, world.prompts[:1], SETTINGS, network=network, weight=1 / layers)
    (answer,) = decode(world.lm, method, world.prompts[:1], SETTINGS)
    drafted, rounds = answer.stats.drafted, answer.stats.rounds
    alone = answer.stats.rounds - answer.stats.offered[0]  # rounds that drafted nothing
    assert found.counts["passes"] == [drafted]
    exits = drafted + rounds - alone
    expected = (exits + (layers - 1) * (rounds - alone) + layers * alone + drafted) / layers
    assert found.counts["depth"] == [pytest.approx(expected, abs=1e-3)]


class Scripted(BlockwiseParallel):
    """Drafts one and the same tree: two siblings, of which each has a child with the first one's token."""

    def propose(self, run: Run, state: Any, budget: Any) -> DraftTree:
        tree = DraftTree.root(run.ids[-1])
        if min(budget.depth, budget.nodes) < 2:
            return tree
        first, second = tree.add(0, 1), tree.add(0, 2)
        tree.add(first, 1)
        tree.add(second, 1)
        tree.add(second, 3, scored_only=True)
        return tree

    def start(self, run: Run) -> Draft | None:
        return None

    def read(self, run: Run, state: Any, scores: Any) -> None:
        pass

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        pass

    def wanted(self, state: Any) -> Any:
        return self.needs

    reading = wanted

    def pricing(self, run: Run, state: Any) -> Callable[[int], float]:
        return lambda tokens: 0.0


def test_what_is_distinct_and_what_repeats(world: World) -> None:
    """Of a tree 1, 2 over 1, 1: three distinct tokens of four, one of them the token before it again."""
    found = tally(world.lm, Scripted(), world.prompts[:1], SETTINGS)
    trees, rest = divmod(found.counts["drafted"][0], 4)
    assert trees > 3
    assert rest == 0
    assert found.counts["distinct"] == [3 * trees]
    # Of every tree the 1 behind 1, and the siblings that repeat what the answer has before them.
    answer = decode(world.lm, Plain(), world.prompts[:1], SETTINGS)[0].tokens
    assert trees <= found.counts["repeated"][0] <= trees + sum(token in (1, 2) for token in answer)


def test_right_by_place_is_what_the_heads_say(world: World) -> None:
    """Place by place against the tokens that stand there, from one state at a time."""
    network: Any = fresh(world, "blockwise_parallel", heads=2)
    answers = [answer.tokens for answer in decode(world.lm, Plain(), world.prompts, SETTINGS)]
    found = right(world.lm, network, world.prompts, answers)
    for number, (prompt, answer) in enumerate(zip(world.prompts, answers, strict=True)):
        ids = [*prompt, *answer]
        sequence = world.lm.sequence()
        (scores,) = world.lm.forward([(sequence, DraftTree.chain(ids), Want(logits="none", hidden=(-1,)))])
        for place in (1, 2):
            hits = asked = 0
            for at in range(len(ids) - place - 1):
                if at + place + 1 < len(prompt):
                    continue
                with torch.inference_mode():
                    guess = int(network.guesses(world.lm, scores.hidden[-1][at], 2)[place - 1].argmax())
                hits += guess == ids[at + place + 1]
                asked += 1
            assert (found[f"right {place}"][number], found[f"asked {place}"][number]) == (hits, asked)
        sequence.release()


def test_an_oracle_with_one_token_is_the_heads_and_with_all_is_perfect(world: World) -> None:
    network: Any = fresh(world, "blockwise_parallel", heads=3)
    method = BlockwiseParallel(heads=network)
    found = tally(world.lm, method, world.prompts, SETTINGS)
    bounds = [oracle(world.lm, network, world.prompts, found.answers, top) for top in (1, 4, world.lm.vocab_size)]
    for name in ("tokens", "forwards", "rounds"):
        assert bounds[0].counts[name] == found.counts[name], name
    assert bounds[2].counts["forwards"] == [math.ceil(tokens / 4) for tokens in found.counts["tokens"]]
    figures = [bound.figure("tokens per forward") for bound in bounds]
    assert figures[0] < figures[1] < figures[2]


def drawn(seed: int, mean: float, prompts: int = 40) -> Tally:
    source = np.random.default_rng(seed)
    forwards = source.integers(8, 20, prompts)
    tokens = (forwards * source.gamma(4, mean / 4, prompts)).round()
    return Tally({"tokens": tokens.tolist(), "forwards": forwards.tolist()})


def test_the_interval_is_scipys_and_of_its_group() -> None:
    ours, theirs = drawn(3, 2.0), drawn(4, 1.6)
    looping = [number % 4 == 0 for number in range(40)]
    record = compare(ours, theirs, "tokens per forward", looping)
    for group, chosen in (("all", slice(None)), ("looping", slice(0, None, 4))):
        four = [np.array(side.counts[name])[chosen] for side in (ours, theirs) for name in ("tokens", "forwards")]
        expected = bootstrap(
            four,
            lambda a, b, c, d, axis=-1: a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis),
            paired=True,
            method="percentile",
            n_resamples=9999,
            rng=np.random.default_rng(1),
        ).confidence_interval
        middle, low, high = record[group]
        assert middle == pytest.approx(four[0].sum() / four[1].sum() - four[2].sum() / four[3].sum(), abs=1e-4)
        width = expected.high - expected.low
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.06 * width)
    assert record["others"] != record["all"]


def test_which_is_higher_follows_from_the_interval() -> None:
    far, near = drawn(3, 2.6), drawn(3, 1.2)
    looping = [False] * 40
    said = [compare(a, b, "tokens per forward", looping) for a, b in ((far, near), (near, far), (far, far))]
    assert [record["says"] for record in said] == ["higher", "lower", "undecided"]
    assert "looping" not in said[0]
    assert said[0]["others"] == said[0]["all"]
    with pytest.raises(ValueError, match="prompts cannot be paired with 40"):
        compare(far, drawn(1, 1.0, 10), "tokens per forward", [False] * 10)


def test_figures_of_places() -> None:
    assert parts("right 3") == ("right 3", "asked 3")
    found = Tally({"right 1": [1, 0, 2], "asked 1": [2, 0, 4]})
    assert found.figure("right 1") == 0.5
    assert found.figure("right 1", [1]) == 0
