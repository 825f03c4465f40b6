"""What DReSD proposes, and how it fares beside REST on prompts that are worded otherwise than the store's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import segue
from segue.api import Model
from segue.data import Settings
from segue.decode.plain import Plain
from segue.decode.speculative.auto import Auto
from segue.decode.speculative.base import Budget
from segue.decode.speculative.dresd import Dresd, Query
from segue.decode.speculative.rest import Rest
from segue.decode.speculative.store.build import build
from segue.decode.speculative.store.dense import Dense, DenseStore
from segue.decode.speculative.store.suffix import Suffix
from segue.laws.base import decode
from segue.laws.worlds import World, toy_world
from segue.models.run import Run

WIDE = Budget(nodes=100, depth=100)
TEXTS = [[1, 2, 0, 2, 1], [0, 1, 2, 0, 0, 1], [2, 1, 2, 1, 1]]
PARAPHRASES = Path(__file__).parents[2] / "data" / "paraphrases.jsonl"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("dresd") / "s", Dense(dims=9), toy_world(3).lm, TEXTS, list))


def proposed(store: str, ids: list[int], budget: Budget = WIDE, **fields: Any) -> list[int]:
    """What is drafted when the toy's state is that of `ids` without the pending token."""
    method = Dresd(index=store, **fields)
    run = Run(toy_world(3).lm, ids, Settings())
    state = np.zeros(9)
    context = [0, 0, *ids[:-1]]
    state[3 * context[-2] + context[-1]] = 1  # the toy's state says which its last two tokens are
    return method.propose(run, Query(DenseStore.open(store), state, len(ids)), budget).tokens


def test_what_followed_a_like_state_and_the_same_token(store: str) -> None:
    # The state of "1 2" was met twice before "0" and once before "1"; of what is kept the 0 itself is known already.
    assert proposed(store, [1, 2, 0], hits=3) == [0, 0, 2, 1, 1]
    assert proposed(store, [1, 2, 1], hits=3) == [1, 1]
    assert proposed(store, [1, 2, 2], hits=3) == [2]
    # Without the filter all three hits count, whatever they began with.
    assert sorted(proposed(store, [1, 2, 2], hits=3, filter=False)[1:]) == [0, 1, 1, 1, 2]


def test_a_draft_keeps_to_the_budget(store: str) -> None:
    assert proposed(store, [1, 2, 0], Budget(nodes=1, depth=9), hits=3) == [0, 0]
    assert len(proposed(store, [1, 2, 0], Budget(nodes=9, depth=1), hits=3)) == 3
    assert proposed(store, [1, 2, 0], Budget(nodes=9, depth=0), hits=3) == [0]
    assert proposed(store, [1, 2, 0], hits=3, length=1, nodes=1) == [0, 0]


def test_queries_are_the_states_at_the_last_accepted_position(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look-up is made with the state that reading the text so far, alone, would give."""
    settings = Settings(max_tokens=40, ignore_eos=True)
    (plain,) = decode(world.lm, Plain(), [world.prompts[1]], settings)
    text = [*world.prompts[1], *plain.tokens]
    folder = str(build(tmp_path / "s", Dense(dims=16), world.lm, [text, text[5:]], list))
    asked: list[Any] = []
    nearest = DenseStore.nearest
    monkeypatch.setattr(DenseStore, "nearest", lambda self, state, k: asked.append(state) or nearest(self, state, k))
    (answer,) = decode(world.lm, Dresd(index=folder), [world.prompts[1]], settings)
    assert answer.tokens == plain.tokens
    assert len(asked) == answer.stats.rounds - (answer.stats.tokens_per_forward < 1)
    (states,) = Dense()._states(world.lm, [text])
    places = [int(np.abs(states - state).max(1).argmin()) for state in asked]
    for state, place in zip(asked, places, strict=True):
        np.testing.assert_allclose(states[place], state, atol=1e-4)
    assert places[0] == len(world.prompts[1]) - 1
    assert places == sorted(set(places))
    assert answer.stats.tokens_per_forward > 5  # the store holds this very text


def test_rounds_of_a_chooser_without_states_are_rounds_without_a_draft(store: str) -> None:
    method = Dresd(index=store)
    run = Run(toy_world(3).lm, [1, 2, 0], Settings())
    query = Query(DenseStore.open(store), np.ones(9), 2)  # the state of an earlier round
    assert method.propose(run, query, WIDE).tokens == [0]


def test_it_drafts_under_auto(world: World, tmp_path: Path) -> None:
    settings = Settings(max_tokens=40, ignore_eos=True)
    (plain,) = decode(world.lm, Plain(), [world.prompts[1]], settings)
    folder = str(build(tmp_path / "s", Dense(dims=16), world.lm, [[*world.prompts[1], *plain.tokens]], list))
    auto = Auto(drafters=(Dresd(index=folder),), budget="fixed")
    (answer,) = decode(world.lm, auto, [world.prompts[1]], settings)
    assert answer.tokens == plain.tokens
    assert "dresd" in answer.stats.methods


def test_without_a_store_the_way_to_one_is_told(world: World, store: str) -> None:
    assert Dresd().lacks(world.lm) == "no datastore was given"
    assert Dresd().needs.hidden == ()
    with pytest.raises(ValueError, match="make one with `segue index build --kind dense` and give it as index=STORE"):
        decode(world.lm, Dresd(), [[1, 2]], Settings(max_tokens=2))
    assert "does not exist" in Dresd(index="nowhere").lacks(world.lm)
    with pytest.raises(ValueError, match="built for toy-3-2-0 and tiny-gpt2-0 has another tokenizer"):
        decode(world.lm, Dresd(index=store), [[1, 2]], Settings(max_tokens=2))
    lm = toy_world(3).lm
    assert Dresd(index=store).lacks(lm) == ""
    assert Dresd(index=store).price(Run(lm, [1, 2], Settings()), 4) > 0


@pytest.mark.parametrize("field", ["hits", "length", "nodes"])
def test_fields_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is not allowed: at least 1"):
        Dresd(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sharpness=-1 is not allowed"):
        Dresd(sharpness=-1)


@dataclass
class Fared:
    """Drafting on a set of prompts: tokens per target forward after the prompt, share of drafted tokens kept."""

    tokens: float
    acceptance: float


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fared]:
    """Stores of the embedded model's own answers to 40 questions; what methods do on the paraphrases of these."""
    assert torch.get_num_threads() == 1
    lm: Model = segue.model(dtype="float32")
    rows = [json.loads(line) for line in PARAPHRASES.read_text().splitlines()]
    asked = [lm.encode(row["prompt"]) for row in rows]
    queries = [lm.encode(row["paraphrase"]) for row in rows]
    answers = lm.generate(asked, method="plain", max_tokens=64)
    texts = [[*p, *a.tokens] for p, a in zip(asked, answers, strict=True)]
    folder = tmp_path_factory.mktemp("paraphrases")
    stores = {
        Rest: str(build(folder / "suffix", Suffix(), lm.lm, texts, list)),
        Dresd: str(build(folder / "dense", Dense(), lm.lm, texts, list)),
    }
    expected = [a.tokens for a in lm.generate(queries, method="plain", max_tokens=64)]

    @functools.cache
    def fare(cls: Any, **fields: Any) -> Fared:
        found = lm.generate(queries, method=cls(index=stores[cls], **fields), max_tokens=64)
        assert [a.tokens for a in found] == expected
        stats = [a.stats for a in found]
        tokens = sum(s.tokens for s in stats) / sum(s.target_forwards - s.prefill_forwards for s in stats)
        fared = Fared(tokens, sum(s.accepted for s in stats) / sum(s.drafted for s in stats))
        print(f"{cls.__name__} {fields}: {fared.tokens:.3f} tokens a forward, acceptance {fared.acceptance:.3f}")
        return fared

    return fare


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [8, 16])
def test_paraphrases_are_found_more_often_than_by_equal_text(held_out: Callable[..., Fared], nodes: int) -> None:
    dense, sparse = held_out(Dresd, nodes=nodes), held_out(Rest, nodes=nodes)
    assert dense.tokens > 1.1 * sparse.tokens  # of what it drafts it is not a larger share: it drafts oftener


@pytest.mark.slow
def test_the_filter_keeps_what_is_accepted(held_out: Callable[..., Fared]) -> None:
    """Hits that went on with another token waste rows: without the filter a smaller share of the draft is kept."""
    filtered, unfiltered = held_out(Dresd, nodes=16), held_out(Dresd, nodes=16, filter=False)
    assert filtered.acceptance > 1.15 * unfiltered.acceptance
