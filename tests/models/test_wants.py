"""Everything a `Want` can ask for besides logits, against transformers' own outputs."""

from __future__ import annotations

import random

import pytest
import torch

from segue.data import CapabilityError, DraftTree, Want
from segue.models.sequence import Mark
from tests.models.families import VOCAB, Twins, twins
from tests.models.transformers.test_packed_trees import random_tree, tokens

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "gemma2"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Twins:
    return twins(request.param)


def test_hidden_states_and_topk_of_every_node(pair: Twins) -> None:
    rng = random.Random(5)
    a, b = pair.lm.sequence(), pair.lm.sequence()
    trees = [random_tree(rng, 7), DraftTree.chain(tokens(rng, 5))]
    want = Want(hidden=(0, 2, -1), topk=3)
    for tree, mine in zip(trees, pair.lm.forward([(a, trees[0], want), (b, trees[1], want)]), strict=True):
        node = len(tree) - 1
        text = torch.tensor([[tree.tokens[i] for i in tree.path(node)]])
        with torch.no_grad():
            out = pair.oracle(text, use_cache=False, output_hidden_states=True)
        for layer in want.hidden:
            torch.testing.assert_close(mine.hidden[layer][node], out.hidden_states[layer][0, -1], atol=1e-4, rtol=1e-4)
        assert mine.topk is not None
        assert mine.topk[node].tolist() == out.logits[0, -1].topk(3).indices.tolist()


def test_attention_row(pair: Twins) -> None:
    rng = random.Random(6)
    parent = pair.lm.sequence()
    prompt = tokens(rng, 70)
    pair.lm.forward([(parent, DraftTree.chain(prompt), Want(logits="none"))])
    parent.commit(list(range(70)))
    child = parent.fork()  # its rows lie in a shared piece now
    tree = random_tree(rng, 6)
    (scores,) = pair.lm.forward([(child, tree, Want(attention=((1,), (5,))))])
    path = tree.path(5)
    with torch.no_grad():
        out = pair.oracle(
            torch.tensor([prompt + [tree.tokens[i] for i in path]]), use_cache=False, output_attentions=True
        )
    weights = scores.attention[1][:, 0]
    row = weights[:, [*range(70), *(70 + i for i in path)]]
    torch.testing.assert_close(row, out.attentions[1][0, :, -1], atol=1e-5, rtol=1e-4)
    assert float(weights.sum(-1).sub(1).abs().max()) < 1e-5


def test_layer_subset_equals_a_model_without_those_layers(pair: Twins) -> None:
    rng = random.Random(7)
    text = tokens(rng, 9)
    sequence = pair.lm.sequence()
    (scores,) = pair.lm.forward([(sequence, DraftTree.chain(text), Want(layers=(0, 2)))])
    oracle = twins(pair.lm.name).oracle
    stack = next(m for m in oracle.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    stack[1].forward = lambda hidden_states, *_, **__: hidden_states
    with torch.no_grad():
        expected = oracle(torch.tensor([text]), use_cache=False).logits[0]
    torch.testing.assert_close(scores.logits, expected, atol=1e-5, rtol=1e-4)
    # The skipped layer lacks rows now: running it again needs a rollback, and says so.
    start = Mark(0, None)
    sequence.commit(list(range(9)))
    with pytest.raises(ValueError, match="layer 1 holds 0 of 9 rows"):
        pair.lm.forward([(sequence, DraftTree.root(5), Want())])
    sequence.rollback(start)
    (scores,) = pair.lm.forward([(sequence, DraftTree.chain(text), Want())])
    torch.testing.assert_close(scores.logits, pair.logits(text), atol=1e-5, rtol=1e-4)


def test_bad_wants_are_refused(pair: Twins) -> None:
    sequence = pair.lm.sequence()
    tree = DraftTree.chain([3, 4])
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        pair.lm.forward([(sequence, tree, Want(layers=(0, 9)))])
    with pytest.raises(CapabilityError, match="hidden state 12"):
        pair.lm.forward([(sequence, tree, Want(hidden=(12,)))])
    with pytest.raises(ValueError, match="one set of layers"):
        pair.lm.forward([(sequence, tree, Want(layers=(0,))), (pair.lm.sequence(), tree, Want())])
    assert pair.lm.vocab_size == VOCAB
