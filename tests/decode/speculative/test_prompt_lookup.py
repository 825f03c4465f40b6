from __future__ import annotations

import pytest

from segue.data import DraftTree, Settings
from segue.decode.speculative.base import Budget
from segue.decode.speculative.prompt_lookup import Index, PromptLookup
from segue.laws.worlds import toy_world
from segue.models.run import Run

WIDE = Budget(nodes=100, depth=100)


def proposed(ids: list[int], budget: Budget = WIDE, **fields: int) -> list[int]:
    """What is drafted after a text, without the pending token."""
    method = PromptLookup(**fields)
    run = Run(toy_world(10).lm, ids, Settings())
    tree = method.propose(run, method.start(run), budget)
    assert tree.tokens[0] == ids[-1]
    assert tree.is_chain
    return tree.tokens[1:]


def test_what_followed_the_same_words() -> None:
    assert proposed([1, 2, 3, 4, 5, 6, 1, 2, 3], draft_tokens=2) == [4, 5]
    assert proposed([1, 2, 3, 4, 5]) == []
    assert proposed([7]) == []
    assert proposed([7, 7], draft_tokens=3) == [7, 7, 7]


def test_the_longest_match_comes_first() -> None:
    #       1 2 3 -> 4   versus the later   3 -> 9
    assert proposed([1, 2, 3, 4, 3, 9, 1, 2, 3], draft_tokens=1) == [4]
    assert proposed([1, 2, 3, 4, 3, 9, 1, 2, 3], draft_tokens=1, max_ngram=1) == [9]


def test_the_latest_of_equal_matches_is_taken() -> None:
    assert proposed([1, 2, 5, 1, 2, 6, 1, 2], draft_tokens=1) == [6]


def test_a_match_that_reaches_to_the_end_goes_on_as_it_did() -> None:
    assert proposed([1, 2, 3, 1, 2], draft_tokens=8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_a_draft_keeps_to_the_budget() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    assert proposed(text, Budget(nodes=2, depth=9)) == [3, 4]
    assert proposed(text, Budget(nodes=9, depth=1)) == [3]
    assert proposed(text, Budget(nodes=9, depth=0)) == []


def test_the_index_grows_with_the_text() -> None:
    """Extending token by token knows what indexing the whole text knows."""
    method = PromptLookup()
    run = Run(toy_world(10).lm, [1, 2, 3], Settings())
    state = method.start(run)
    for token in [1, 2, 4, 1, 2, 3, 1, 2, 4, 4, 1, 2]:
        run.ids.append(token)
        tree = method.propose(run, state, WIDE)
        assert isinstance(tree, DraftTree)
        assert tree.tokens[1:] == proposed(run.ids)
    fresh = Index()
    method._extend(fresh, run.ids, len(run.ids))
    assert fresh == state


@pytest.mark.parametrize("field", ["max_ngram", "draft_tokens"])
def test_fields_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is not allowed: at least 1"):
        PromptLookup(**{field: 0})
