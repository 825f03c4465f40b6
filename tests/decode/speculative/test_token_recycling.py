from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

from segue.data import DraftTree, PackedLogits, Scores, Settings, Stats
from segue.decode.speculative.base import Budget, Outcome
from segue.decode.speculative.token_recycling import RANKS, UNKNOWN, TokenRecycling, template
from segue.laws.base import decode
from segue.laws.suite import repetitive
from segue.laws.worlds import World, toy_world
from segue.models.lm import LM
from segue.models.run import Run

Listen = Callable[[LM], Any]
SMALL = TokenRecycling(width=2, nodes=6, depth=3)
WIDE = Budget(nodes=100, depth=100)


def observed(tree: DraftTree, topk: list[list[int]], path: list[int]) -> Outcome:
    scores = Scores(PackedLogits(torch.empty(len(tree), 4)), 0, list(range(len(tree))), topk=torch.tensor(topk))
    return Outcome(tree, scores, path, topk[path[-1]][0])


def test_the_matrix_after_hand_written_rounds() -> None:
    run = Run(toy_world(4).lm, [0, 1], Settings())
    m = SMALL.start(run)
    assert m.tolist() == [[UNKNOWN] * 2] * 4
    # Nothing is known of token 1: the pending token goes alone.
    assert SMALL.propose(run, m, WIDE).tokens == [1]
    SMALL.observe(run, m, observed(DraftTree.root(1), [[2, 3]], [0]))
    assert m.tolist() == [[UNKNOWN] * 2, [2, 3], [UNKNOWN] * 2, [UNKNOWN] * 2]
    run.ids.append(1)
    tree = SMALL.propose(run, m, WIDE)
    assert isinstance(tree, DraftTree)
    assert (tree.tokens, tree.parents) == ([1, 2, 3], [-1, 0, 0])
    # The round writes the rows of all its nodes, accepted or not.
    SMALL.observe(run, m, observed(tree, [[3, 2], [0, 1], [1, 0]], [0, 2]))
    assert m.tolist() == [[UNKNOWN] * 2, [3, 2], [0, 1], [1, 0]]
    # From 1: its successors 3 and 2, then below 3 its successor 1, and so on by rank.
    grown = SMALL.propose(run, m, WIDE)
    assert isinstance(grown, DraftTree)
    assert [(grown.tokens[p], t) for p, t in zip(grown.parents[1:], grown.tokens[1:], strict=True)] == [
        (1, 3), (3, 1), (1, 2), (1, 3), (3, 0), (2, 0),
    ]  # fmt: skip


def test_of_two_nodes_with_one_token_the_accepted_one_is_remembered() -> None:
    run = Run(toy_world(4).lm, [0, 1], Settings())
    m = SMALL.start(run)
    tree = DraftTree.from_paths(1, [(2,), (3, 2)])
    SMALL.observe(run, m, observed(tree, [[2, 3], [0, 1], [2, 0], [3, 1]], [0, 1]))
    assert m[2].tolist() == [0, 1]
    SMALL.observe(run, m, observed(tree, [[2, 3], [0, 1], [2, 0], [3, 1]], [0, 2, 3]))
    assert m[2].tolist() == [3, 1]


def test_rows_are_the_top_of_the_logits(world: World, listen: Listen) -> None:
    heard = listen(world.lm)
    decode(world.lm, TokenRecycling(), [world.prompts[1]], Settings(max_tokens=30))
    (m,) = world.lm.stores.values()
    seen: dict[int, set[tuple[int, ...]]] = {}
    for tree, scores in zip(heard.trees[1:], heard.scores[1:], strict=True):
        for node, token in enumerate(tree.tokens):
            seen.setdefault(token, set()).add(tuple(scores.row(node).topk(8).indices.tolist()))
    known = {token for token in range(world.lm.vocab_size) if m[token, 0] != UNKNOWN}
    assert known == set(seen)
    assert all(tuple(m[token].tolist()) in seen[token] for token in known)
    assert (m.dtype, m.shape) == (torch.int32, (world.lm.vocab_size, 8))


def stats(world: World, method: TokenRecycling, tokens: int = 40) -> Stats:
    return decode(world.lm, method, [repetitive(world)], Settings(max_tokens=tokens))[0].stats


def test_a_kept_matrix_helps_the_next_request_until_it_is_reset(world: World) -> None:
    cold, warm = stats(world, TokenRecycling()), stats(world, TokenRecycling())
    assert warm.tokens_per_forward > cold.tokens_per_forward > 1
    world.lm.reset_stores()
    again = stats(world, TokenRecycling())
    assert (again.target_forwards, again.drafted, again.accepted) == (
        cold.target_forwards, cold.drafted, cold.accepted,
    )  # fmt: skip


def test_it_learns_within_one_request(world: World) -> None:
    rates = []
    for tokens in (4, 40):
        world.lm.reset_stores()
        rates.append(stats(world, TokenRecycling(), tokens).tokens_per_forward)
    assert rates[0] < rates[1]


def test_a_matrix_may_belong_to_the_request(world: World) -> None:
    mine = TokenRecycling(keep=False)
    first, second = stats(world, mine), stats(world, mine)
    assert first.target_forwards == second.target_forwards
    assert not world.lm.stores


def test_a_vocabulary_smaller_than_the_width() -> None:
    world = toy_world(3)
    (answer,) = decode(world.lm, TokenRecycling(), [[0]], Settings(max_tokens=12))
    assert answer.tokens == world.oracle.answer([0], Settings(max_tokens=12)).tokens
    assert answer.stats.tokens_per_forward > 1


@pytest.mark.parametrize(("width", "nodes", "depth"), [(8, 80, 6), (8, 30, 3), (1, 10, 10), (3, 512, 4), (8, 1, 1)])
def test_the_template_is_a_tree_of_ranks(width: int, nodes: int, depth: int) -> None:
    tree = template(width, nodes, depth)
    full = sum(width**d for d in range(1, depth + 1))
    assert len(tree) == len(set(tree)) == min(nodes, full)
    depths, chances = [0], [1.0]
    for node, (parent, rank) in enumerate(tree, start=1):
        assert 0 <= parent < node
        assert 0 <= rank < width
        assert rank == 0 or (parent, rank - 1) in tree[: node - 1]
        depths.append(depths[parent] + 1)
        chances.append(chances[parent] * RANKS[rank])
    assert max(depths) <= depth
    assert all(a >= b - 1e-12 for a, b in pairwise(chances))


def test_the_template_holds_the_likeliest_nodes() -> None:
    """Among all trees of five nodes, of two ranks and three levels, none is reached more often."""
    places = [(r,) for r in range(2)]
    places += [(*p, r) for p in list(places) for r in range(2)]
    places += [(*p, r) for p in places if len(p) == 2 for r in range(2)]

    def chance(place: tuple[int, ...]) -> float:
        return float(torch.tensor([RANKS[r] for r in place], dtype=torch.float64).prod())

    whole = [set(c) for c in combinations(places, 5) if all(p[:-1] in {(), *c} for p in c)]
    best = max(sum(map(chance, tree)) for tree in whole)
    chances = [1.0]
    for parent, rank in template(2, 5, 3):
        chances.append(chances[parent] * RANKS[rank])
    assert sum(chances[1:]) == pytest.approx(best)


def test_a_smaller_template_is_a_prefix_of_a_larger_one() -> None:
    assert template(8, 80, 6)[:25] == template(8, 25, 6)


def test_a_draft_keeps_to_the_depth(world: World) -> None:
    stats(world, TokenRecycling())
    run = Run(world.lm, repetitive(world), Settings())
    method = TokenRecycling()
    m = method.start(run)
    deep, flat = (method.propose(run, m, Budget(nodes=512, depth=d)) for d in (6, 2))
    assert isinstance(deep, DraftTree)
    assert isinstance(flat, DraftTree)
    assert (max(deep.depths), max(flat.depths)) == (6, 2)
    # Trimming the deep tree to as many nodes gives a prefix of the same template.
    assert deep.truncate(10).tokens == deep.tokens[:10]


@pytest.mark.parametrize(("field", "most"), [("width", 8), ("nodes", 512), ("depth", 64)])
def test_fields_are_checked(field: str, most: int) -> None:
    for value in (0, most + 1):
        with pytest.raises(ValueError, match=f"{field}={value} is not allowed: from 1 to {most}"):
            TokenRecycling(**{field: value})
