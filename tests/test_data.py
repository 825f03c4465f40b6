from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from segue.data import Completion, DraftTree, PackedLogits, Scores, Settings, Stats, TokenLogprob, Want


def branching() -> DraftTree:
    """0 -> 1 -> 2, 0 -> 3 -> (4, 5)."""
    return DraftTree.from_paths(10, [(11, 12), (13, 14), (13, 15)])


def random_tree(source: random.Random, size: int, sampled: bool = False) -> DraftTree:
    tree = DraftTree.root(0)
    for _ in range(size):
        parent = source.randrange(len(tree))
        tree.add(parent, source.randrange(9), sampled=sampled, score=source.random(), source=str(len(tree)))
    return tree


def test_a_tree_from_paths_shares_prefixes() -> None:
    tree = branching()
    assert tree.tokens == [10, 11, 12, 13, 14, 15]
    assert tree.parents == [-1, 0, 1, 0, 3, 3]
    assert tree.depths == [0, 1, 2, 1, 2, 2]
    assert tree.children() == [[1, 3], [2], [], [4, 5], [], []]
    assert tree.path(5) == [0, 3, 5]
    assert not tree.is_chain


def test_a_chain() -> None:
    tree = DraftTree.chain([4, 5, 6], source="x")
    assert (tree.parents, tree.depths, tree.is_chain) == ([-1, 0, 1], [0, 1, 2], True)
    assert tree.add(2, 7) == 3
    assert tree.is_chain
    tree.add(1, 8)
    assert not tree.is_chain
    with pytest.raises(ValueError, match="at least the pending token"):
        DraftTree.chain([])


def test_grafted_paths_hang_beside_what_is_there() -> None:
    tree = DraftTree.chain([1, 2])
    tree.graft([(2, 3)], source="late")
    assert tree.children()[0] == [1, 2]
    assert tree.source[2:] == ["late", "late"]


def test_parents_precede_their_children() -> None:
    tree = DraftTree.root(0)
    for parent in (1, -1):
        with pytest.raises(ValueError, match="does not precede"):
            tree.add(parent, 1)


def test_what_is_only_scored_has_no_acceptable_child() -> None:
    tree = DraftTree.root(0)
    window = tree.add(0, 1, scored_only=True)
    tree.add(window, 2, scored_only=True)
    tree.add(0, 3)
    with pytest.raises(ValueError, match="scored only"):
        tree.add(window, 2)
    assert tree.children() == [[3], [], [], []]


def test_what_is_merged_in_does_not_hide_in_nodes_that_are_only_scored() -> None:
    """A lookahead window may hold the very tokens that another drafter proposes."""
    tree = DraftTree.root(0)
    window = tree.add(0, 1, scored_only=True)
    tree.add(window, 2, scored_only=True)
    own = tree.add(0, 3)
    tree.merge(DraftTree.from_paths(0, [[1, 2], [3, 4]], "found"))
    paths = {tuple(tree.tokens[i] for i in tree.path(n)) for n in range(len(tree)) if not tree.scored_only[n]}
    assert paths == {(0,), (0, 1), (0, 1, 2), (0, 3), (0, 3, 4)}
    assert tree.source[:4] == ["", "", "", "+found"]
    assert tree.edges()[0, 3] == own
    assert tree.edges()[0, 1] > own


def test_a_node_sees_its_ancestors_and_itself() -> None:
    for size in range(12):
        tree = random_tree(random.Random(size), size)
        naive = torch.tensor([[j in tree.path(i) for j in range(len(tree))] for i in range(len(tree))])
        assert torch.equal(tree.ancestors(), naive)
    assert torch.equal(DraftTree.chain([1, 2, 3]).ancestors(), torch.ones(3, 3).tril().bool())


def test_truncating_keeps_the_likeliest_nodes_with_their_parents() -> None:
    for seed in range(40):
        tree = random_tree(random.Random(seed), 14)
        survival = [1.0]
        for node in range(1, len(tree)):
            survival.append(survival[tree.parents[node]] * tree.score[node])
        for size in (1, 4, 9):
            cut = tree.truncate(size)
            assert len(cut) == size
            kept = [0, *(int(source) for source in cut.source[1:])]
            assert {tree.parents[node] for node in kept[1:]} <= set(kept)
            assert [cut.tokens, cut.depths] == [[tree.tokens[n] for n in kept], [tree.depths[n] for n in kept]]
            assert [kept[p] for p in cut.parents[1:]] == [tree.parents[n] for n in kept[1:]]
            best = sorted(survival[1:], reverse=True)[: size - 1]
            assert sorted((survival[n] for n in kept[1:]), reverse=True) == pytest.approx(best)


def test_truncating_drawn_nodes_keeps_the_first_ones_whatever_was_drawn() -> None:
    tree = random_tree(random.Random(0), 9, sampled=True)
    tree.q = {node: torch.full((9,), 1 / 9) for node in range(10)}
    tree.replacement = False
    cut = tree.truncate(6)
    assert (cut.tokens, cut.parents) == (tree.tokens[:6], tree.parents[:6])
    assert sorted(cut.q) == [0, 1, 2, 3, 4, 5]
    assert not cut.replacement


def test_truncating_by_depth_and_sparing_what_is_only_scored() -> None:
    tree = branching()
    window = tree.add(0, 1, scored_only=True)
    tree.add(tree.add(window, 2, scored_only=True), 3, scored_only=True)
    cut = tree.truncate(99, depth=1)
    assert cut.tokens == [10, 11, 13, 1, 2, 3]
    assert cut.scored_only == [False, False, False, True, True, True]
    assert tree.truncate(1).tokens == [10, 1, 2, 3]
    assert tree.truncate(99) is tree
    assert branching().truncate(99, depth=0).tokens == [10]


@pytest.mark.parametrize(
    ("want", "rows"),
    [
        (Want(), [0, 1, 2, 3]),
        (Want(logits="last"), [3]),
        (Want(logits="none"), []),
        (Want(logits=(2, 0)), [0, 2]),
        (Want(logits=(-1, 1)), [1, 3]),
        (Want(logits="last", topk=2), [0, 1, 2, 3]),
    ],
)
def test_rows_wanted(want: Want, rows: list[int]) -> None:
    assert want.rows(4) == rows


def test_scores_are_read_by_node() -> None:
    logits = torch.arange(20.0).view(5, 4)
    packed = PackedLogits(logits)
    first, sparse = Scores(packed, 0, [0, 1, 2]), Scores(packed, 3, [1, 4])
    assert torch.equal(first.row(1), logits[1])
    assert torch.equal(first.row(-1), logits[2])
    assert torch.equal(sparse.row(4), logits[4])
    assert torch.equal(sparse.row(-2), logits[3])
    assert torch.equal(sparse.logits, logits[3:])
    assert sparse.argmax() == [3, 3]
    with pytest.raises(ValueError, match="2 is not in list"):
        sparse.row(2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_row_is_seen_where_it_is(bad: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = bad
    packed = PackedLogits(logits)
    assert Scores(packed, 0, [0, 1]).finite()
    assert not Scores(packed, 2, [0, 1]).finite()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", "9"), ("min_tokens", -1),
        ("min_tokens", 200), ("temperature", -1), ("temperature", 1e-9), ("temperature", float("nan")),
        ("temperature", "hot"), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("typical_p", 0),
        ("repetition_penalty", 0), ("presence_penalty", 1000), ("frequency_penalty", float("inf")),
        ("logit_bias", {"x": 1}), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: float("nan")}), ("logit_bias", 3),
        ("bad_words", ("",)), ("stop", ("",)), ("stop", (1,)), ("logprobs", -1), ("logprobs", True), ("seed", 1.5),
        ("seed", 2**63),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_name_themselves(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed: "):
        Settings(**{name: value})


def test_settings_take_what_people_write() -> None:
    settings = Settings(stop="END", bad_words=["a", "b"], stop_tokens=[1, 2], logit_bias={"3": 1}, temperature=1)  # type: ignore[arg-type]
    assert (settings.stop, settings.bad_words, settings.stop_tokens) == (("END",), ("a", "b"), (1, 2))
    assert settings.logit_bias == {3: 1.0}
    assert "top_p" in Settings.names()
    assert Settings().temperature == 0


def test_rates() -> None:
    stats = Stats(tokens=12, target_forwards=6, prefill_forwards=3, drafted=8, accepted=6, seconds=2.0)
    assert stats.tokens_per_forward == 3  # a prompt counts as one forward, in however many chunks it was read
    assert stats.acceptance == 0.75
    assert stats.tokens_per_second == 6
    empty = Stats()
    assert (empty.tokens_per_forward, empty.acceptance, empty.tokens_per_second) == (0, None, 0)
    assert stats.as_dict()["tokens_per_forward"] == 3


def test_a_completion_as_json() -> None:
    answer = Completion("ab", [1, 2], "stop", Stats(tokens=2), [TokenLogprob(1, -0.5, [(1, -0.5)])])
    data = answer.as_dict()
    assert (data["text"], data["tokens"], data["finish_reason"]) == ("ab", [1, 2], "stop")
    assert data["logprobs"] == [{"token": 1, "logprob": -0.5, "top": [(1, -0.5)]}]
    assert "logprobs" not in Completion("", [], "length", Stats()).as_dict()


def test_narrow_keeps_the_likeliest_branches_and_all_that_is_scored_only() -> None:
    tree = DraftTree.root(0)
    for token in (1, 2):
        tree.add(0, token, scored_only=True)
    for token, score in ((3, 0.2), (4, 0.9), (5, 0.5)):
        tree.add(tree.add(0, token, score=score), 10 + token, score=0.5)
    assert tree.narrow(5) is tree
    cut = tree.narrow(4)
    assert cut.tokens == [0, 1, 2, 4, 14, 5, 15]
    assert cut.scored_only == [False, True, True, False, False, False, False]
    assert len(cut.leaves()) == 4
    assert tree.narrow(1).tokens == [0, 1, 2]  # the window is never cut: its drafter knows it by number
    drawn = DraftTree.root(0)
    for token, score in ((1, 0.1), (2, 0.9)):
        drawn.add(0, token, sampled=True, score=score)
    assert drawn.narrow(1).tokens == [0, 1]  # by order, whatever was drawn
    drawn.add(2, 3, sampled=True)
    drawn.add(1, 4, sampled=True)
    drawn.add(1, 5, sampled=True)
    # Up to the first node that is a leaf too many, not whole branches.
    assert drawn.narrow(1).tokens == [0, 1]
    assert drawn.narrow(2).tokens == [0, 1, 2, 3, 4]
    assert drawn.narrow(3) is drawn
