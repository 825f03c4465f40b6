"""auto: same output, chosen from round to round, bounded, explained, and resting where the clock says so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.card import Card, Paper, SameTokens
from segue.data import DraftTree, Settings
from segue.decode.speculative.auto import Auto, kind_of
from segue.decode.speculative.base import Budget, Speculative
from segue.decode.speculative.budget.guard import LONGEST_REST, OFTEN, RARELY, REST, STRIKES, WINDOW, Guard
from segue.decode.speculative.jakiro import Jakiro
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.store.build import build
from segue.decode.speculative.store.suffix import Suffix
from segue.laws.base import decode
from segue.laws.worlds import World, neighbour, toy_world
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.prefixes import Prefixes
from segue.models.run import Run

PERIODIC = [5, 9, 17, 3] * 6


def test_a_repetitive_text_takes_fewer_forwards_and_says_who_drafted(world: World) -> None:
    settings = Settings(max_tokens=40, ignore_eos=True)
    (answer,) = decode(world.lm, segue.method("auto"), [PERIODIC], settings)
    assert answer.tokens == world.oracle.answer(PERIODIC, settings).tokens
    assert answer.stats.target_forwards < 30
    assert sum(answer.stats.methods.values()) == answer.stats.rounds
    assert "% of the rounds" in answer.stats.note


def test_allow_and_deny_bound_the_choice(world: World) -> None:
    settings = Settings(max_tokens=40, ignore_eos=True)
    for bounds, allowed in (
        ({"allow": "prompt_lookup"}, {"prompt_lookup", "plain"}),
        ({"deny": "prompt_lookup,lookahead"}, {"token_recycling", "plain"}),
        ({"allow": "plain"}, {"plain"}),
    ):
        world.lm.reset_stores()
        (answer,) = decode(world.lm, segue.method("auto", **bounds), [PERIODIC], settings)
        assert set(answer.stats.methods) <= allowed
        assert answer.stats.methods


def test_a_datastore_reaches_the_drafter_that_reads_it(world: World, tmp_path: Path) -> None:
    """By name with index, as `--set` gives it, or as an object among names: both copy from the store."""
    settings, prompt = Settings(max_tokens=40, ignore_eos=True), [3, 1, 4, 1, 5]
    expected = world.oracle.answer(prompt, settings).tokens
    store = str(build(tmp_path / "s", Suffix(), world.lm, [[*prompt, *expected]], list))
    made = segue.method("rest", index=store)
    plain = decode(world.lm, segue.method("auto", allow="plain"), [prompt], settings)[0].stats.target_forwards
    for method in (
        segue.method("auto", allow="prompt_lookup,rest", index=store),
        segue.method("auto", allow="", index=store),  # all: whoever cannot read this one is left out
        segue.method("auto", drafters=("prompt_lookup", made)),
    ):
        world.lm.reset_stores()
        (answer,) = decode(world.lm, method, [prompt], settings)
        assert answer.tokens == expected
        assert any("rest" in name for name in answer.stats.methods)
        assert answer.stats.target_forwards < plain


def test_a_store_of_no_use_to_any_drafter_is_an_error(world: World, tmp_path: Path) -> None:
    other = str(build(tmp_path / "other", Suffix(), toy_world(4).lm, [[0, 1, 2, 3]], list))
    for fields, message in (
        ({"index": other}, "index='.*other' is given, and no drafter here reads one"),
        ({"index": other, "allow": "prompt_lookup,rest"}, "has another tokenizer"),
        ({"index": str(tmp_path / "none"), "allow": "prompt_lookup,rest"}, "none does not exist"),
        ({"table": str(tmp_path / "none"), "allow": "aded"}, "there is no table"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(world.lm, segue.method("auto", **fields), [[1, 2, 3]], Settings(max_tokens=4))


def test_an_unknown_drafter_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean token_recycling"):
        segue.method("auto", deny="token_recyling")


def test_a_draft_model_is_an_arm_where_one_is_given() -> None:
    world = toy_world(4)
    assert "draft_model" in [type(d).__module__.rpartition(".")[2] for d in segue.method("auto").drafters]
    method = segue.method("auto", draft=neighbour(world.lm), allow="draft_model")
    for temperature in (0.0, 1.0):
        (answer,) = decode(world.lm, method, [[0, 1]], Settings(max_tokens=60, temperature=temperature, seed=3))
        assert len(answer.tokens) == 60
    without = decode(world.lm, segue.method("auto", allow="draft_model"), [[0, 1]], Settings(max_tokens=10))[0]
    assert set(without.stats.methods) == {"plain"}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_same_seed_gives_plain_decodings_text(world: World, temperature: float) -> None:
    """Retrieved drafts cost no randomness: a token takes one uniform number, as in plain decoding."""
    settings = Settings(max_tokens=30, temperature=temperature, seed=11, ignore_eos=True)
    expected = decode(world.lm, segue.method("plain"), [PERIODIC], settings)[0].tokens
    for name in ("auto", "prompt_lookup", "token_recycling", "lookahead"):
        assert decode(world.lm, segue.method(name), [PERIODIC], settings)[0].tokens == expected


@dataclass(frozen=True)
class Hopeless(Speculative):
    """Proposes a wide tree of nonsense every round."""

    card = Card(paper=Paper(id="", title="", year=0), claim=None, exact=(SameTokens(),))

    def start(self, run: Run) -> None:
        return None

    def propose(self, run: Run, state: None, budget: Budget) -> DraftTree:
        return DraftTree.from_paths(run.ids[-1], [[t] for t in range(min(16, budget.nodes))], source="hopeless")


def test_a_drafter_that_is_always_wrong_is_not_verified_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "step_seconds", lambda run, rows: 1.0 + 0.2 * (rows - 1))
    method = segue.method("auto", drafters=(Hopeless(),))
    (answer,) = decode(world.lm, method, [[1, 2, 3]], Settings(max_tokens=60, ignore_eos=True))
    assert answer.tokens == world.oracle.answer([1, 2, 3], Settings(max_tokens=60, ignore_eos=True)).tokens
    assert answer.stats.methods["plain"] > 0.7 * answer.stats.rounds


def jakiro(world: World, first: float) -> JakiroNetwork:
    """An untrained drafter whose drafts are said to take so many seconds."""
    network = JakiroNetwork.fresh(world.lm, inner=16).eval().requires_grad_(False)
    network.first = first
    return network


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trained_drafter_goes_on_beside_the_others_where_that_pays(
    world: World, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    monkeypatch.setattr(Run, "step_seconds", lambda run, rows: 1.0 + 0.01 * (rows - 1))
    asked: list[int] = []

    class Watched(Jakiro):
        name = "jakiro"

        def propose(self, run: Run, state: Any, budget: Budget) -> Any:
            asked.append(budget.depth)
            return super().propose(run, state, budget)

    settings = Settings(max_tokens=40, ignore_eos=True, temperature=temperature, seed=2)
    prompt, rounds = world.prompts[0], []
    expected = decode(world.lm, segue.method("plain"), [prompt], settings)[0].tokens
    for first in (0.01, 50.0):
        world.lm.reset_stores()
        asked.clear()
        method = Auto(drafters=(PromptLookup(), Watched(heads=jakiro(world, first), width=2)))
        (answer,) = decode(world.lm, method, [prompt], settings)
        assert answer.tokens == expected
        rounds.append(len(asked))
        assert answer.stats.draft_forwards == 0  # what it reads it gets from rounds in which it was not asked, too
    assert rounds[0] > 0
    assert rounds[1] == 0


def test_a_trained_drafter_that_takes_longer_than_it_says_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step_seconds", lambda run, rows: 1.0 + 0.01 * (rows - 1))

    class Slow(Jakiro):
        def propose(self, run: Run, state: Any, budget: Budget) -> Any:
            time.sleep(0.02)
            return super().propose(run, state, budget)

    method = Auto(drafters=(Slow(heads=jakiro(world, 0.001), width=2),), budget="fixed")
    settings = Settings(max_tokens=200, ignore_eos=True)
    (answer,) = decode(world.lm, method, world.prompts[:1], settings)
    assert answer.tokens == world.oracle.answer(world.prompts[0], settings).tokens
    assert "rested" in answer.stats.note


def test_the_packages_drafter_is_used_on_its_model_alone() -> None:
    by_default = [drafter.name for drafter in segue.method("auto").drafters]
    assert ("jakiro" in by_default) == ("jakiro" in Auto().allow)
    for name, able in (("mini", True), ("mini-draft", False)):
        lm = segue.model(name).lm
        assert (not Jakiro().lacks(lm)) == able
        run = Run(lm, [5, 6, 7], Settings(max_tokens=4))
        method = segue.method("auto", allow="prompt_lookup,jakiro")
        assert list(method.start(run).joining) == (["jakiro"] if able else [])
        assert method.reading(method.start(run)).hidden == ((-1,) if able else ())
        run.prefixes = Prefixes(1 << 20)  # requests share what they read of their prompts: there are no states of it
        assert not method.start(run).joining


def test_kinds_tell_code_and_length_and_sampling_apart() -> None:
    lm = segue.model(dtype="float32").lm

    def kind(text: str, **settings: float) -> str:
        return kind_of(Run(lm, lm.encode(text), Settings(**settings)))  # type: ignore[arg-type]

    assert kind("def f(x):\n    return {x: [x, (x)]}").startswith("code, short, greedy")
    assert kind("Once upon a time there was a king.") == "prose, short, greedy"
    assert kind("User: hello\nAssistant:", temperature=1.0) == "conversation, short, sampled"
    assert "long" in kind("word " * 1200)


def test_the_guard_rests_after_three_slow_windows_and_longer_each_time() -> None:
    guard = Guard()
    rests = []
    for _ in range(4000):
        if guard.plain_round(1.0):
            guard.saw(plain=True, tokens=1, seconds=1.0)
        else:
            guard.saw(plain=False, tokens=1, seconds=1.1)
        if guard.resting and (not rests or guard.pauses > len(rests)):
            rests.append(guard.resting)
    assert rests[:4] == [REST, 2 * REST, 4 * REST, 8 * REST]
    assert max(rests) <= LONGEST_REST
    assert guard.ratio == pytest.approx(1 / 1.1)


def test_the_guard_leaves_a_gain_alone_and_takes_baselines() -> None:
    guard = Guard()
    plain = 0
    for number in range(1000):
        if guard.plain_round(2.0):
            plain += 1
            guard.saw(plain=True, tokens=1, seconds=1.0)
        else:
            # One disturbed round in ten says nothing.
            guard.saw(plain=False, tokens=3, seconds=20.0 if number % 10 == 0 else 1.5)
    assert guard.pauses == 0
    assert plain == pytest.approx(1000 / (RARELY + 1), abs=2)
    assert OFTEN < RARELY
    assert WINDOW * STRIKES < REST
