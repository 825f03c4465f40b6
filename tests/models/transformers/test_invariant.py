"""Bits: rows that are scored together give what each gives alone, and so drafts change no token even in bfloat16."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import segue
from segue.data import CapabilityError, DraftTree, Settings, Want
from segue.laws.base import decode
from segue.models.rows import rows_alone
from segue.models.transformers import invariant
from segue.models.transformers.linear import maker
from segue.models.transformers.load import load, wrap
from tests.models.families import network
from tests.models.transformers.test_packed_trees import random_tree, tokens

PROMPTS = Path(__file__).parents[2] / "data" / "prompts.jsonl"


@pytest.fixture(scope="module")
def mini() -> Any:
    return segue.model(dtype="bfloat16", invariant=True)


@pytest.mark.parametrize("name", ["prompt_lookup", "token_recycling", "lookahead", "draft_model", "auto"])
def test_greedy_output_is_plain_decodings_in_bfloat16(mini: Any, name: str) -> None:
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()][::10]
    plain = mini.generate(prompts, method="plain", max_tokens=24)
    other = mini.generate(prompts, method=name, max_tokens=24)
    assert [a.tokens for a in other] == [a.tokens for a in plain]
    if name != "auto":  # which drafts only where that pays
        assert sum(a.stats.accepted for a in other) > 12
    alone = [mini.generate(prompt, method=name, max_tokens=24) for prompt in prompts[:2]]
    assert [a.tokens for a in alone] == [a.tokens for a in plain[:2]]


def test_without_it_bits_differ() -> None:
    """Else the test above would show nothing."""
    assert not all(rows_alone(load(dtype="bfloat16")).values())
    assert all(rows_alone(load(dtype="bfloat16", invariant=True)).values())


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "qwen3", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families(family: str, dtype: torch.dtype) -> None:
    lm = wrap(network(family).to(dtype), name=family, make=maker(), invariant=True)
    rng = random.Random(3)
    parent = lm.sequence()
    lm.forward([(parent, DraftTree.chain(tokens(rng, 70)), Want(logits="none"))])
    parent.commit(list(range(70)))
    fork = parent.fork()  # the past is a shared piece now
    fresh = lm.sequence()
    lm.forward([(fresh, DraftTree.chain(list(parent.tokens)), Want(logits="none"))])
    fresh.commit(list(range(70)))
    tree = random_tree(rng, 11)
    packed = lm.forward([(parent, random_tree(rng, 4), Want()), (fork, tree, Want()), (fresh, tree, Want())])
    assert torch.equal(packed[1].logits, packed[2].logits)
    for leaf in tree.leaves():
        mark = fresh.mark()
        for node in tree.path(leaf):
            (one,) = lm.forward([(fresh, DraftTree.root(tree.tokens[node]), Want())])
            assert torch.equal(one.logits[0], packed[1].row(node))
            fresh.commit([0])
        fresh.rollback(mark)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized(kind: str) -> None:
    lm = load(quantize=kind, invariant=True)
    prompts = [lm.encode("Once upon a time"), lm.encode("User: Hello\nAssistant:")]
    plain = decode(lm, segue.method("plain"), prompts, Settings(max_tokens=30))
    drafted = decode(lm, segue.method("token_recycling"), prompts, Settings(max_tokens=30))
    assert [a.tokens for a in drafted] == [a.tokens for a in plain]


def test_what_mixes_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = invariant.InvariantProduct.__call__

    def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
        return right(self, x) + x.mean() * 1e-3

    monkeypatch.setattr(invariant.InvariantProduct, "__call__", mixing)
    with pytest.raises(CapabilityError, match="cannot be made invariant in float32"):
        load(dtype="float32", invariant=True)


def test_experts_mix_rows() -> None:
    with pytest.raises(CapabilityError, match="2 rows together give other bits"):
        wrap(network("gpt-oss"), name="gpt-oss", make=maker(), invariant=True)


def test_options_that_exclude_it() -> None:
    with pytest.raises(ValueError, match="lean=True"):
        load(invariant=True, lean=False)
    with pytest.raises(ValueError, match="means nothing"):
        segue.model(backend="llama.cpp", invariant=True)
