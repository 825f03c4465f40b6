"""Trees scored on from a node, states given to a layer, views and excerpts of a cache: against plain forwards."""

from __future__ import annotations

import random
from collections.abc import Generator

import pytest
import torch

from segue.data import CapabilityError, DraftTree, Scores, Settings, Want
from segue.laws.worlds import network_world
from segue.models.draft import Draft
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.run import Request, Run
from segue.models.sequence import Sequence
from tests.models.families import Twins, twins
from tests.models.transformers.test_packed_trees import random_tree, tokens

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "gemma2"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Twins:
    return twins(request.param)


def read(lm: LM, text: list[int]) -> Sequence:
    sequence = lm.sequence()
    lm.forward([(sequence, DraftTree.chain(text), Want(logits="none"))])
    sequence.commit(list(range(len(text))))
    return sequence


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_tree_scored_in_steps_is_the_tree_scored_at_once(pair: Twins, shared: bool) -> None:
    rng = random.Random(1)
    text = tokens(rng, 70)
    a, b = read(pair.lm, text), read(pair.lm, text)
    if shared:
        a = a.fork()
    whole = random_tree(rng, 12)
    (expected,) = pair.lm.forward([(b, whole, Want())])
    growing = DraftTree.root(whole.tokens[0])
    done = 0
    for size in (1, 4, 5, 12):
        for node in range(len(growing), size):
            growing.add(whole.parents[node], whole.tokens[node])
        (scores,) = pair.lm.forward([(a, growing, Want(since=done))])
        assert scores.nodes == list(range(done, size))
        close(scores.logits, expected.logits[done:size])
        done = size
    path = whole.path(11)
    for sequence in (a, b):
        sequence.commit(path)
    after = DraftTree.root(3)
    close(pair.lm.forward([(a, after, Want())])[0].logits, pair.lm.forward([(b, after, Want())])[0].logits)


def test_only_the_tree_that_lies_there_can_be_scored_on(pair: Twins) -> None:
    sequence = read(pair.lm, [1, 2, 3])
    tree = DraftTree.chain([4, 5])
    with pytest.raises(ValueError, match="scored on from a node"):
        pair.lm.forward([(sequence, tree, Want(since=1))])
    pair.lm.forward([(sequence, tree, Want())])
    tree.add(1, 6)
    tree.add(1, 7)
    with pytest.raises(ValueError, match="nodes before 3 were not scored"):
        pair.lm.forward([(sequence, tree, Want(since=3))])


def test_resuming_at_a_layer_is_the_full_forward(pair: Twins) -> None:
    """An early exit drafts with the first layers; verification goes on from their states and shares their rows."""
    rng = random.Random(2)
    text = tokens(rng, 20)
    a, b = read(pair.lm, text), read(pair.lm, text)
    tree = random_tree(rng, 9)
    layers = pair.lm.layers
    (expected,) = pair.lm.forward([(b, tree, Want(hidden=(layers, -1)))])
    for exit_at in range(1, layers):
        lower = Want(layers=tuple(range(exit_at)), hidden=(exit_at,))
        (early,) = pair.lm.forward([(a, tree, lower)])
        upper = tuple(range(exit_at, layers))
        resumed = Want(layers=upper, states=early.hidden[exit_at], hidden=(len(upper), -1))
        (scores,) = pair.lm.forward([(a, tree, resumed)])
        assert torch.equal(scores.logits, expected.logits)
        assert torch.equal(scores.hidden[len(upper)], expected.hidden[layers])
        assert torch.equal(scores.hidden[-1], expected.hidden[-1])


def test_without_layers_only_the_norm_is_left(pair: Twins) -> None:
    (whole,) = pair.lm.forward([(pair.lm.sequence(), DraftTree.chain([5, 6, 7]), Want(hidden=(pair.lm.layers, -1)))])
    want = Want(layers=(), states=whole.hidden[pair.lm.layers], hidden=(0, -1))
    (scores,) = pair.lm.forward([(pair.lm.sequence(), DraftTree.chain([5, 6, 7]), want)])
    assert torch.equal(scores.hidden[-1], whole.hidden[-1])
    assert torch.equal(scores.logits, whole.logits)


def test_a_whole_view_is_the_sequence_and_follows_it(pair: Twins) -> None:
    rng = random.Random(3)
    text = tokens(rng, 80)
    sequence = read(pair.lm, text).fork()
    view = sequence.view({})
    excerpt = sequence.excerpt(torch.arange(60))
    tree = random_tree(rng, 6)
    (expected,) = pair.lm.forward([(sequence, tree, Want())])
    close(pair.lm.forward([(view, tree, Want())])[0].logits, expected.logits)
    shorter = read(pair.lm, text[:60])
    close(pair.lm.forward([(excerpt, tree, Want())])[0].logits, pair.lm.forward([(shorter, tree, Want())])[0].logits)
    view.commit([0])  # drafted, and refused:
    sequence.commit(tree.path(5))
    view.follow(sequence)
    assert view.tokens == sequence.tokens
    again = DraftTree.chain([9, 8])
    close(pair.lm.forward([(view, again, Want())])[0].logits, pair.lm.forward([(sequence, again, Want())])[0].logits)


def test_a_sparse_view_sees_its_rows_only(pair: Twins) -> None:
    """Against the model's own attention with the other rows masked out."""
    if pair.lm.windowed:
        view = read(pair.lm, list(range(1, 41))).view({i: torch.arange(5) for i in range(pair.lm.layers)})
        with pytest.raises(CapabilityError, match="sees a window of rows"):
            pair.lm.forward([(view, DraftTree.chain([3, 4]), Want())])
        return
    rng = random.Random(4)
    text, kept = tokens(rng, 40), [0, 3, 4, 17, 30, 39]
    view = read(pair.lm, text).view({i: torch.tensor(kept) for i in range(pair.lm.layers)})
    tree = random_tree(rng, 5)
    (first,) = pair.lm.forward([(view, tree, Want())])
    path = tree.path(4)
    view.commit(path)
    (second,) = pair.lm.forward([(view, DraftTree.root(7), Want())])
    whole = [*text, *(tree.tokens[n] for n in path), 7]
    n = len(whole)
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[40:, :40] = False
    mask[40:, kept] = True
    with torch.no_grad():
        additive = torch.zeros(1, 1, n, n).masked_fill(~mask, torch.finfo(torch.float32).min)
        logits = pair.oracle(torch.tensor([whole]), attention_mask=additive, use_cache=False).logits[0]
    close(first.row(4), logits[-2])
    close(second.row(0), logits[-1])
    with pytest.raises(ValueError, match="a view taken at 40 tokens cannot be cut to 12"):
        view.past.truncate(12)


def test_an_excerpt_moves_its_rows_together(pair: Twins) -> None:
    """Layer 0's rows depend on tokens and positions alone, so there an excerpt must be what a fresh reading caches."""
    rng = random.Random(5)
    text, kept = tokens(rng, 30), [0, 1, 9, 10, 22, 29]
    sequence = read(pair.lm, text)
    if pair.lm.name in ("gpt2", "gemma3"):
        with pytest.raises(CapabilityError, match="keep their own positions"):
            sequence.excerpt(torch.tensor(kept))
        return
    excerpt = sequence.excerpt(torch.tensor(kept))
    assert excerpt.tokens == [text[i] for i in kept]
    fresh = read(pair.lm, excerpt.tokens)
    for ours, theirs in zip(excerpt.past.past(0, 6)[0], fresh.past.past(0, 6)[0], strict=True):  # type: ignore[attr-defined]
        close(ours, theirs)


def test_a_draft_grows_a_tree_and_keeps_what_was_accepted() -> None:
    """Rows of a tree grown in steps equal those after each text read by itself, also after partial acceptance, and no
    token is read twice."""
    world = network_world("llama")
    lm = world.lm
    ids = list(world.prompts[1])
    draft = Draft(lm.sequence(), lm.vocab_size)
    run = Run(lm, ids, Settings(max_tokens=1))
    text = lm.sequence()
    lm.forward([(text, DraftTree.chain(ids[:-1]), Want(logits="none"))])
    text.commit(list(range(len(ids) - 1)))
    rng = random.Random(6)
    rows: list[int] = []

    def work() -> Generator[Request, Scores, None]:
        nonlocal ids
        for _ in range(4):
            tree = DraftTree.root(ids[-1])
            for size in (1, 3, 7):
                while len(tree) < size:
                    tree.add(rng.randrange(len(tree)), rng.randrange(lm.vocab_size))
                found = yield from draft.rows(ids, tree)
                for node, row in zip(range(size - len(found), size), found, strict=True):
                    path = ids[:-1] + [tree.tokens[n] for n in tree.path(node)]
                    (alone,) = lm.forward([(lm.sequence(), DraftTree.chain(path), Want(logits="last"))])
                    close(row, alone.row(-1))
            path = tree.path(rng.randrange(7))
            lm.forward([(text, tree, Want())])
            text.commit(path)
            rows.append(len(draft.sequence))
            draft.settle(text, [tree.tokens[n] for n in path])
            assert draft.sequence.tokens == text.tokens
            ids = [*ids[:-1], *(tree.tokens[n] for n in path), rng.randrange(lm.vocab_size)]

    job = Engine()
    done = job.add(run, work())
    job.drain()
    assert done.error is None
    assert rows == sorted(rows)
