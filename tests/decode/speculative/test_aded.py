from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

import segue
from segue.data import Settings
from segue.decode.speculative.aded import Aded, Searching, Table
from segue.decode.speculative.store.base import StoreError, identity
from segue.decode.speculative.store.trigram import build
from segue.laws.base import decode
from segue.laws.worlds import network_world, toy_world
from segue.models.run import Run
from tests.cli.conftest import make_model

Corpus = dict[tuple[int, int], dict[int, float]]
PROMPT = "User: What is the name of the king who lived in the old castle by the sea?\nAssistant:"


def searching(corpus: Corpus, seed: int = 0) -> Searching:
    return Searching(Table(corpus), random.Random(seed))


def test_learning_adds_the_rate_per_occurrence_up_to_the_cap() -> None:
    lm = network_world("llama").lm
    text = [5, 6, 7, 5, 6, 7, 5, 6, 8]
    method = Aded(rate=0.04, cap=0.07)
    run = Run(lm, text, Settings(max_tokens=4))
    state = method.start(run)
    from segue.decode.speculative.base import Budget

    method.propose(run, state, Budget(64, 8))
    table = state.table
    assert dict(table[5, 6]) == pytest.approx({7: 0.07, 8: 0.04})  # twice, capped; once
    assert dict(table[6, 7]) == pytest.approx({5: 0.07})
    before = dict(table[7, 5])
    method.propose(run, state, Budget(64, 8))  # nothing new to learn
    assert dict(table[7, 5]) == before == pytest.approx({6: 0.07})


def test_a_corpus_weight_is_where_learning_starts() -> None:
    table = Table({(1, 2): {3: 0.5, 4: 2.99}})
    table.add((1, 2), 3, 0.04, 3.0)
    table.add((1, 2), 4, 0.04, 3.0)
    assert dict(table[1, 2]) == pytest.approx({3: 0.54, 4: 3.0})
    assert table.corpus[1, 2][3] == 0.5  # the corpus itself is never written to


def random_table(seed: int) -> Corpus:
    """Every pair over six tokens has three successors, one of them clearly the likeliest."""
    rng = random.Random(seed)
    return {
        (a, b): dict(zip(rng.sample(range(6), 3), (0.8, 0.15, 0.05), strict=True)) for a in range(6) for b in range(6)
    }


@pytest.mark.parametrize("seed", range(5))
def test_without_exploration_the_most_visited_path_is_the_best_one(seed: int) -> None:
    """Against an exhaustive beam search over the table for the largest sum of shares."""
    corpus = random_table(seed)
    method = Aded(c1=0.0, iterations=600, length=3, paths=1)
    state = searching(corpus, seed)
    (found,) = method.best(method.search((0, 1), state), state.table)
    beams: list[tuple[float, list[int]]] = [(0.0, [0, 1])]
    for _ in range(3):
        beams = [(s + w, [*t, c]) for s, t in beams for c, w in corpus[t[-2], t[-1]].items()]
    best = max(beams)[1][2:]
    assert [node.pair[1] for node in found[:3]] == best
    last = max(corpus[best[-2], best[-1]].items(), key=lambda item: item[1])[0]
    assert found[3].pair[1] == last  # each path is longer by its likeliest successor


def test_exploration_tries_more_paths() -> None:
    corpus = random_table(1)
    ends = {}
    for c1 in (0.0, 32.0):
        method = Aded(c1=c1, iterations=150, length=4, paths=1000)
        state = searching(corpus)
        root = method.search((0, 1), state)
        ends[c1] = len(method.best(root, state.table))
    assert ends[32.0] > 1.5 * ends[0.0]


def test_tokens_per_forward_rise_with_what_was_seen(tmp_path: Path) -> None:
    """The same prompt again, and before that with a table of other texts of its kind."""
    model = segue.model(dtype="float32")
    cold = model.generate(PROMPT, Aded(), max_tokens=48, ignore_eos=True).stats
    again = model.generate(PROMPT, Aded(), max_tokens=48, ignore_eos=True).stats
    assert again.tokens_per_forward > cold.tokens_per_forward
    model.reset()
    reset = model.generate(PROMPT, Aded(), max_tokens=48, ignore_eos=True).stats
    assert reset.tokens_per_forward == cold.tokens_per_forward
    model.reset()
    asked = ["User: Who was the king of the castle?\nAssistant:", "The king lived by the sea.", "Once there was a king"]
    texts = [model.encode(p) + model.generate(p, "plain", max_tokens=96, ignore_eos=True).tokens for p in asked]
    path = tmp_path / "kings"
    build(texts, path, identity(model.lm))
    warm = model.generate(PROMPT, Aded(table=str(path)), max_tokens=48, ignore_eos=True)
    rates = [stats.tokens_per_forward for stats in (cold, warm.stats, again)]
    print(f"tokens per forward: cold, with a table, again: {rates}")
    assert warm.stats.tokens_per_forward > cold.tokens_per_forward


def test_a_seed_proposes_the_same() -> None:
    world = network_world("llama")
    a, b = (decode(world.lm, Aded(keep=False), [world.prompts[1]], Settings(max_tokens=30))[0].stats for _ in range(2))
    assert (a.drafted, a.accepted, a.rounds) == (b.drafted, b.accepted, b.rounds)


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    lm = network_world("llama").lm
    other = tmp_path / "other"
    build([[1, 2, 3]], other, identity(toy_world(9).lm))
    for table, message in (
        (tmp_path / "none", "there is no table .*none .*`segue index table` makes one"),
        (other, "was built for toy-9-2-0 and tiny-llama-0 has another tokenizer"),
    ):
        method = Aded(table=str(table))
        assert re.search(message, method.lacks(lm))
        with pytest.raises(StoreError, match=message):
            decode(lm, method, [[1, 2]], Settings(max_tokens=2))
    assert not Aded().lacks(lm)


def test_a_table_of_another_tokenizer_is_refused_though_it_is_as_large(tmp_path: Path) -> None:
    """The same words in another order: ids that mean nothing here."""
    here, there = (segue.model(make_model(tmp_path / name, swapped=name == "there")).lm for name in ("here", "there"))
    assert here.vocab_size == there.vocab_size
    build([[1, 2, 3]], tmp_path / "t", identity(there))
    method = Aded(table=str(tmp_path / "t"))
    assert not method.lacks(there)
    with pytest.raises(StoreError, match="has another tokenizer: build one with `segue index table -m`"):
        decode(here, method, [[1, 2]], Settings(max_tokens=2))


def test_what_was_learned_over_a_table_is_forgotten_with_it(tmp_path: Path) -> None:
    lm, path = network_world("llama").lm, tmp_path / "t"
    lm.reset_stores()
    run = Run(lm, [1, 2], Settings(max_tokens=2))
    for last in (3, 4):
        build([[1, 2, last]], path, identity(lm))
        table = Aded(table=str(path)).start(run).table
        assert dict(table[1, 2]) == {last: 1.0}
        table.add((1, 2), 9, 0.04, 3.0)
        assert Aded(table=str(path)).start(run).table is table
    lm.reset_stores()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": 0}, "iterations=0 is not allowed: at least 1"),
        ({"rate": 0.0}, "rate=0.0 is not allowed: above 0"),
        ({"c1": -1.0}, "c1=-1.0 is not allowed: at least 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aded(**fields)
