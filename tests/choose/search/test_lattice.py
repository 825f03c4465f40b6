"""Lattices: what the law of the naive search cannot say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.parts.best_first import BestFirst
from segue.choose.parts.dag import Dag
from segue.choose.parts.recombine import Recombination
from segue.choose.search.lattice import Lattice
from segue.data import ConstraintError, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.lattice import listed
from segue.laws.targets.lattice import hold
from segue.laws.worlds import World, network_world, toy_world
from segue.ops.automaton import Phrases, Trie
from tests.mutation import mutate

PROMPTS = ["Once upon a time", "The capital of France is"]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model(dtype="float32")  # in bfloat16 a near tie may part the lattice from greedy decoding


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


MUTATIONS = {
    "any lengths merge": (Recombination, "_fits", "< self._gap", ">= 0"),
    "one token fewer must agree": (Recombination, "place", "tokens[-self._ngram :]", "tokens[1 - self._ngram :]"),
    "the newest of several twins": (Recombination, "place", "in self._ending[key] if", "in self._ending[key][::-1] if"),
    "zip goes back one node": (Recombination, "_merge", "before, other_before = earlier", "break"),
    "zip does not look at tokens": (Recombination, "_merge", "dag.token(before) != dag.token(other_before)", "False"),
    "what waits behind a merged node goes on": (Recombination, "place", "and not keep", "and False"),
    "the greedy text may merge": (Recombination, "place", "None if keep else next", "next"),
    "a merge loses what precedes": (Dag, "join", "theirs.before.setdefault(before, logp)", "pass"),
    "a merge keeps the later figure": (
        Dag,
        "join",
        "theirs.before.setdefault(before, logp)",
        "theirs.before[before] = logp",
    ),
    "the worst goes on next": (BestFirst, "_push", "-self.worth", "self.worth"),
    "paths of any length are texts": (Dag, "_ends", "level == most", "True"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, world: World, name: str) -> None:
    mutate(monkeypatch, *MUTATIONS[name])

    def held() -> None:
        hold(Lattice(), toy_world(3, 2))
        hold(Lattice(), world)

    with pytest.raises((LawBroken, ValueError)):
        held()


def test_it_holds_many_more_texts_than_a_beam_for_as_many_calls(model: Model) -> None:
    for prompt in ("The old man", "In the morning the king"):
        beam = model.generate(prompt, method=segue.method("beam", beams=8), max_tokens=24)
        assert beam.stats.rows > 8 * 20
        told = {}
        for merge in ("none", "rcb", "zip"):
            answer = model.generate(prompt, method=Lattice(merge=merge, calls=8 * 24), max_tokens=24)
            told[merge] = answer.trace[0]
            assert told[merge]["calls"] <= 8 * 24
        assert told["none"]["merges"] == 0
        assert told["none"]["texts"] == told["none"]["finished"]
        assert told["zip"]["texts"] > 2 * 8
        assert told["zip"]["texts"] > 2 * told["none"]["texts"]
        assert told["rcb"]["texts"] > told["none"]["texts"]


def test_lanes_share_forwards(model: Model) -> None:
    one, four = (
        model.generate(PROMPTS[0], method=Lattice(calls=64, lanes=lanes), max_tokens=16).stats.target_forwards
        for lanes in (1, 4)
    )
    assert one >= 64
    assert four < one / 3


def test_unmerged_figures_are_exact_and_merged_ones_are_not(world: World) -> None:
    for merge, exact in (("none", True), ("zip", False)):
        off = []
        for prompt in world.prompts:
            method = Lattice(merge=merge, calls=60, ngram=1, gap=3)
            (answer,) = decode(world.lm, method, [prompt], Settings(max_tokens=10))
            assert answer.candidates is not None
            off += [abs(pair["stated"] - pair["logp"]) for pair in answer.trace[0]["stated"]]
        assert (max(off) < 1e-3) == exact


def test_every_text_of_a_lattice_keeps_to_the_constraint() -> None:
    """Merged paths as well: states are compared before texts merge."""
    merges = 0
    for seed in range(8):
        world = toy_world(3, None, seed)
        for automaton in (
            Phrases(3, (), [(0, 1), (2, 2)]),
            Trie(3, (), [[0, 1, 2, 0, 1], [1, 1, 2, 0, 0], [2, 1, 2, 0, 1, 1]]),
        ):
            settings = Settings(max_tokens=7, constraint=automaton)
            (answer,) = decode(world.lm, Lattice(calls=60, ngram=1), [world.prompts[-1]], settings)
            merges += answer.trace[0]["merges"]
            found = listed(answer.trace[0]["lattice"], 7)
            assert found
            for text, _ in found:
                state: Any = automaton.start()
                for token in text:
                    state = automaton.step(state, token)
                assert automaton.accepting(state)
    assert merges > 20


def test_every_text_of_a_lattice_has_its_least_length(world: World) -> None:
    prompt = world.prompts[1]
    free = world.oracle.answer(prompt, Settings(max_tokens=8)).tokens
    with ending_at(world.lm, frozenset(free[2:4])):
        settings = Settings(max_tokens=8, min_tokens=5)
        (answer,) = decode(world.lm, Lattice(calls=60, ngram=1), [prompt], settings)
    assert answer.trace[0]["merges"]
    assert all(len(text) >= 5 for text, _ in listed(answer.trace[0]["lattice"], 8))


def test_texts_end_behind_a_stop_string(model: Model) -> None:
    answer = model.generate(PROMPTS[0], method=Lattice(calls=96, ngram=1), max_tokens=16, stop=[", and", "of the"])
    told = answer.trace[0]
    assert told["merges"]
    assert answer.candidates is not None
    for text, _ in listed(told["lattice"], 16):
        words = model.lm.decode(text)
        inner = model.lm.decode(text[:-1])
        assert not any(stop in inner for stop in (", and", "of the"))
        assert len(text) == 16 or any(stop in words for stop in (", and", "of the"))
    assert not any(stop in c.text for c in answer.candidates for stop in (", and", "of the"))


def test_tokens_that_differ_by_case_or_blanks_are_left_out(model: Model) -> None:
    def followers(variants: bool) -> list[list[str]]:
        method = Lattice(calls=120, k=20, merge="none", variants=variants)
        lattice = model.generate(PROMPTS[1], method=method, max_tokens=2).trace[0]["lattice"]
        behind: dict[int, list[str]] = {}
        for start, end, _ in lattice["edges"]:
            behind.setdefault(start, []).append(model.lm.decode([lattice["tokens"][end]]).strip().lower())
        return [[word for word in words if word] for words in behind.values()]

    assert all(len(words) == len(set(words)) for words in followers(False))
    assert any(len(words) > len(set(words)) for words in followers(True))


def test_a_constraint_that_other_settings_contradict_is_refused() -> None:
    world = toy_world(3, 2)
    only = Trie(3, {2}, [[0], [1, 0]])
    with pytest.raises(ConstraintError, match="no text that satisfies"):
        decode(world.lm, Lattice(), [[0]], Settings(max_tokens=6, min_tokens=4, constraint=only))


def test_log_probabilities_are_those_of_the_answer(model: Model) -> None:
    answer = model.generate(PROMPTS[1], method=Lattice(calls=64), max_tokens=12, logprobs=2)
    assert answer.candidates is not None
    assert answer.logprobs is not None
    assert [t.token for t in answer.logprobs] == answer.tokens
    assert sum(t.logprob for t in answer.logprobs) == pytest.approx(answer.candidates[0].logp, abs=1e-3)


def test_the_lattice_is_json_and_holds_every_candidate_and_the_greedy_text(model: Model) -> None:
    answer = model.generate(PROMPTS[1], method=Lattice(calls=96), max_tokens=12)
    told = json.loads(json.dumps(answer.as_dict()))["trace"][0]
    found = {text for text, _ in listed(told["lattice"], told["most"])}
    assert len(found) == told["texts"]
    assert answer.candidates is not None
    assert len(answer.candidates) == 5
    assert {tuple(c.tokens) for c in answer.candidates} <= found
    assert tuple(model.generate(PROMPTS[1], method="plain", max_tokens=12).tokens) in found
    assert f"{told['texts']} texts" in answer.stats.note


def test_even_one_call_gives_the_greedy_text(world: World) -> None:
    for prompt in world.prompts:
        method = Lattice(calls=1, results=1)
        (answer,) = decode(world.lm, method, [prompt], Settings(max_tokens=9))
        assert answer.tokens == world.oracle.answer(prompt, Settings(max_tokens=9)).tokens


@pytest.mark.parametrize(
    "fields",
    [
        *({name: 0} for name in ("calls", "k", "ngram", "gap", "lanes", "results")),
        {"merge": "all"},
        {"length_penalty": float("nan")},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"{name}="):
        replace(Lattice(), **fields)
