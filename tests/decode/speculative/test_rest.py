"""What REST proposes, and what it saves on text that its store holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from segue.data import DraftTree, Settings
from segue.decode.plain import Plain
from segue.decode.speculative.base import Budget
from segue.decode.speculative.rest import Rest
from segue.decode.speculative.store.build import build
from segue.decode.speculative.store.suffix import Suffix
from segue.laws.base import decode
from segue.laws.worlds import World, toy_world
from segue.models.run import Run

WIDE = Budget(nodes=100, depth=100)
TEXTS = [[1, 2, 3, 4, 5], [9, 2, 3, 4, 6], [2, 3, 7], [1, 2, 3, 4, 5, 8]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("rest") / "s", Suffix(), toy_world(10).lm, TEXTS, list))


def proposed(store: str, ids: list[int], budget: Budget = WIDE, **fields: int) -> DraftTree:
    method = Rest(index=store, **fields)
    run = Run(toy_world(10).lm, ids, Settings())
    return method.propose(run, method.start(run), budget)


def test_what_followed_the_longest_match_by_frequency(store: str) -> None:
    tree = proposed(store, [7, 7, 2, 3])
    assert tree.tokens == [3, 4, 5, 7, 6, 8]
    assert tree.parents == [-1, 0, 1, 0, 1, 2]
    assert tree.score[1:] == pytest.approx([3 / 4, 2 / 3, 1 / 4, 1 / 3, 1 / 2])
    assert tree.source[1] == "rest"
    assert not any(tree.sampled)  # all of them retrieved
    # A longer match leaves fewer continuations.
    assert proposed(store, [1, 2, 3]).tokens == [3, 4, 5, 8]
    assert proposed(store, [1, 2, 3], max_suffix=2).tokens == tree.tokens


def test_matches_and_continuations_end_with_their_document(store: str) -> None:
    assert len(proposed(store, [4, 5, 9, 2])) == 4  # not "5, 9", which two documents would make
    assert proposed(store, [5, 9, 2]).tokens == [2, 3, 4, 6]
    assert proposed(store, [3, 7]).tokens == [7]


def test_short_matches_and_unknown_ends_give_nothing(store: str) -> None:
    assert proposed(store, [5, 3]).tokens == [3]
    assert proposed(store, [5, 3], min_suffix=1).tokens[:2] == [3, 4]
    assert proposed(store, [0, 0], min_suffix=1).tokens == [0]
    assert proposed(store, [2]).tokens == [2]


def test_a_draft_keeps_to_the_budget(store: str) -> None:
    assert proposed(store, [2, 3], Budget(nodes=2, depth=9)).tokens == [3, 4, 5]
    assert max(proposed(store, [2, 3], Budget(nodes=9, depth=1)).depths) == 1
    assert proposed(store, [2, 3], Budget(nodes=9, depth=0)).tokens == [3]
    assert proposed(store, [2, 3], nodes=1, length=1).tokens == [3, 4]


def test_text_that_the_store_holds_is_copied(world: World, tmp_path: Path) -> None:
    """Ten tokens and one of the target's own a round, as long as only one document goes on so."""
    settings = Settings(max_tokens=60)
    prompts = [p for p in world.prompts if len(p) < 30]
    plain = decode(world.lm, Plain(), prompts, settings)
    texts = [[*p, *a.tokens] for p, a in zip(prompts, plain, strict=True)]
    method = Rest(index=str(build(tmp_path / "s", Suffix(), world.lm, texts, list)))
    for answer, expected in zip(decode(world.lm, method, prompts, settings), plain, strict=True):
        assert answer.tokens == expected.tokens
        tokens = answer.stats.tokens_per_forward
        print(f"tokens per forward on text that the store holds: {tokens:.2f}")
        assert tokens > 5


def test_without_a_store_the_way_to_one_is_told(world: World, store: str) -> None:
    assert Rest().lacks(world.lm) == "no datastore was given"
    with pytest.raises(ValueError, match="make one with `segue index build` and give it as index=STORE"):
        decode(world.lm, Rest(), [[1, 2]], Settings(max_tokens=2))
    assert "another tokenizer" in Rest(index=store).lacks(world.lm)
    with pytest.raises(ValueError, match=r"built for toy-10-2-0 and tiny-gpt2-0 has another tokenizer"):
        decode(world.lm, Rest(index=store), [[1, 2]], Settings(max_tokens=2))
    assert "does not exist" in Rest(index="nowhere").lacks(world.lm)
    lm = toy_world(10).lm
    assert Rest(index=store).lacks(lm) == ""
    run = Run(lm, [1, 2], Settings())
    assert Rest(index=store).price(run, 4) > 0
    assert Rest(index=store).price(run, 0) == Rest().price(run, 4) == 0


@pytest.mark.parametrize("field", ["max_suffix", "min_suffix", "length", "nodes", "hits"])
def test_fields_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is not allowed: at least 1"):
        Rest(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_suffix=5 is above max_suffix=4"):
        Rest(min_suffix=5, max_suffix=4)
