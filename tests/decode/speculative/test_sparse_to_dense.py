from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.plain import Plain
from segue.decode.speculative.sparse_to_dense import SparseToDense, rows
from segue.laws.base import decode
from segue.laws.worlds import network, network_world
from segue.models.lm import LM
from segue.models.sequence import Sequence
from tests.models.families import twins


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


TEXT = [random.Random(2).randrange(96) for _ in range(60)]


def test_what_is_kept_is_a_top_k_of_eager_attention() -> None:
    pair = twins("llama")
    text = [t % pair.lm.vocab_size for t in TEXT]
    queries, keep, heads = 4, 7, pair.lm.kv_heads(0)
    with torch.no_grad():
        seen = pair.oracle(torch.tensor([text]), use_cache=False, output_attentions=True).attentions
    sequence = pair.lm.sequence()
    pair.lm.forward([(sequence, DraftTree.chain(text[:-queries]), Want(logits="none"))])
    sequence.commit(list(range(len(text) - queries)))
    want = Want(logits="none", attention=(tuple(range(pair.lm.layers)), tuple(range(queries))))
    (scores,) = pair.lm.forward([(sequence, DraftTree.chain(text[-queries:]), want)])
    earlier = len(text) - queries
    for layer, weights in enumerate(seen):
        score = weights[0].numpy()[:, -queries:, :earlier].mean(1)
        score = score.reshape(heads, -1, earlier).mean(1)
        expected = np.sort(np.argsort(-score, axis=-1, kind="stable")[:, :keep], axis=-1)
        found = rows(scores.attention[layer][:, :, :earlier], heads, keep, len(text))
        assert found[:, :keep].tolist() == expected.tolist()
        assert found[:, keep:].tolist() == [list(range(earlier, len(text)))] * heads


def test_keeping_everything_accepts_everything(lm: LM) -> None:
    (answer,) = decode(lm, SparseToDense(keep=1000, gamma=4), [TEXT], Settings(max_tokens=21))
    assert answer.stats.acceptance == 1
    assert answer.stats.target_forwards == 1 + 4
    assert answer.stats.draft_forwards == 4 * 4 + 1  # and the question, read a second time


def first_row(lm: LM, keep: int) -> torch.Tensor:
    """The draft's distribution after the prompt's next token."""
    views: list[Sequence] = []
    forward = lm.forward
    got: list[torch.Tensor] = []

    def listening(asks: Any) -> Any:
        scores = forward(asks)
        if asks[0][0].drafts and asks[0][2].attention is None and not got:
            views.append(asks[0][0])
            got.append(scores[0].row(-1).softmax(-1).clone())
        return scores

    lm.forward = listening  # type: ignore[method-assign]
    try:
        decode(lm, SparseToDense(keep=keep, queries=4), [TEXT], Settings(max_tokens=3))
    finally:
        del lm.forward
    return got[0]


def test_fewer_rows_differ_more() -> None:
    """Mean over models of the total variation to the full cache: nothing at all rows, rising as rows go."""
    from segue.models.transformers.load import wrap

    differences = dict.fromkeys((56, 28, 8, 1), 0.0)
    for seed in range(6):
        lm = wrap(network("llama", seed))
        full = first_row(lm, 1000)
        for keep in differences:
            differences[keep] += 0.5 * float((first_row(lm, keep) - full).abs().sum()) / 6
    values = list(differences.values())
    assert values[0] < 1e-5
    assert values == sorted(values)
    assert values[-1] > 0.02


def test_the_sparse_cache_takes_over_verified_rows(lm: LM) -> None:
    """Behind the seam a view's rows are those of the full cache, not those that were drafted."""
    caught: list[Sequence] = []
    forward = lm.forward

    def listening(asks: Any) -> Any:
        if asks[0][0].drafts and asks[0][2].attention is None:
            caught.append(asks[0][0])
        elif caught and len(asks[0][1]) > 1:
            target, view = asks[0][0], caught[-1]
            start, stop = len(TEXT), len(target)
            if stop > start:
                own = torch.cat([k for k, _ in view.past.past(1, view.past.lengths[1])], 2)  # type: ignore[attr-defined]
                theirs = torch.cat([k for k, _ in target.past.past(1, stop)], 2)  # type: ignore[attr-defined]
                seam = start - view.past.dropped[1]  # type: ignore[attr-defined]
                # The last round's drafts lie behind what was taken over.
                count = min(stop, len(view)) - start - 1
                checked.append(count)
                assert torch.equal(own[:, :, seam : seam + count], theirs[:, :, start : start + count])
        return forward(asks)

    checked: list[int] = []
    lm.forward = listening  # type: ignore[method-assign]
    try:
        decode(lm, SparseToDense(keep=6, queries=4, gamma=3), [TEXT], Settings(max_tokens=25))
    finally:
        del lm.forward
    assert max(checked) > 8


def test_windows_keep_their_rows() -> None:
    lm = network_world("gemma2").lm
    assert 0 < len(lm.windowed) < lm.layers
    method = SparseToDense(keep=3, queries=3, gamma=3)
    (answer,) = decode(lm, method, [TEXT], Settings(max_tokens=20))
    (plain,) = decode(lm, Plain(), [TEXT], Settings(max_tokens=20))
    assert answer.tokens == plain.tokens


@pytest.mark.parametrize("field", ["keep", "queries", "gamma"])
def test_fields_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is not allowed: at least 1"):
        SparseToDense(**{field: 0})
