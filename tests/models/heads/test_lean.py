"""The drafting form against the training form, which has a mask or a chain for every branch and no buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import segue
from segue.laws.worlds import network_world
from segue.models.heads import KINDS, fitted, load, save
from segue.models.heads.base import SHEET
from segue.models.heads.context import Context
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.layer import Attention, Rows, SwiGLU, behind
from segue.models.heads.lean import LeanAttention, LeanExperts, beside
from segue.models.lm import LM

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.1}
precisions = pytest.mark.parametrize("dtype", CLOSE)


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture(params=["ours", "as others have it"])
def attention(request: pytest.FixtureRequest) -> Attention:
    torch.manual_seed(0)
    if request.param == "ours":
        part = Attention(10, 3).double().requires_grad_(False)
        part.norm.weight.copy_(torch.rand(10) + 0.5)
    else:
        part = Attention(10, 6, groups=2, size=4, norm=False, bias=True, base=50.0).double().requires_grad_(False)
    return part


@precisions
def test_branches_behind_a_text_see_it_and_their_own_tokens(attention: Attention, dtype: torch.dtype) -> None:
    """Two nodes behind the text's five tokens, and behind the second of them two more."""
    lean = LeanAttention(attention, dtype)
    context, first, second = torch.randn(5, 10).double(), torch.randn(2, 10).double(), torch.randn(2, 10).double()
    rows = [lean.project(part.to(dtype), at) for part, at in ((context, range(5)), (first, range(5, 6)))]
    bias = beside(None, torch.tensor([0, 0]), dtype)
    keys, values = (torch.cat([each[i] for each in rows], 1) for i in (1, 2))
    one = lean.find(first.to(dtype), rows[1][0], keys, values, bias)
    queries, own_keys, own_values = lean.project(second.to(dtype), range(6, 7))
    keys, values = torch.cat([keys, own_keys], 1), torch.cat([values, own_values], 1)
    two = lean.find(second.to(dtype), queries, keys, values, beside(bias, torch.tensor([1, 1]), dtype))

    shared: Rows = attention.rows(context, range(5))
    chain = behind(None, attention.rows(first, range(5, 6)))
    expected = attention(first, range(5, 6), shared, chain=chain)
    assert torch.allclose(one.double(), expected, atol=CLOSE[dtype])
    before = chain[0][:, [1, 1]], chain[1][:, [1, 1]]
    expected = attention(second, range(6, 7), shared, chain=behind(before, attention.rows(second, range(6, 7))))
    assert torch.allclose(two.double(), expected, atol=CLOSE[dtype])


@precisions
def test_experts_are_mixed_as_one_product(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    experts = [SwiGLU(6, 4).double().requires_grad_(False) for _ in range(2)]
    norm, gate = torch.nn.RMSNorm(6, eps=1e-6).double(), torch.nn.Linear(6, 4, bias=False).double()
    norm.requires_grad_(False).weight.copy_(torch.rand(6) + 0.5)
    states, shares = torch.randn(3, 6).double(), torch.randn(3, 2, 2).double()
    lean = LeanExperts(experts, norm, gate.requires_grad_(False), dtype)
    inner, gates = lean.enter(states.to(dtype))
    found = lean.mixed(states.to(dtype), inner, shares.to(dtype))
    assert torch.allclose(gates.double(), gate(norm(states)), atol=CLOSE[dtype])
    for mixture in range(2):
        expected = states + sum(
            share[:, None] * expert(norm(states)) for share, expert in zip(shares[:, mixture].T, experts, strict=True)
        )
        assert torch.allclose(found[:, mixture].double(), expected, atol=CLOSE[dtype])


def test_a_network_that_learned_more_drafts_by_its_new_weights(lm: LM) -> None:
    network = JakiroNetwork.fresh(lm, inner=8).eval().requires_grad_(False)
    states, before = torch.randn(1, lm.width), network.lean(lm)
    expected = [2 * part for part in before.attention.project(states, range(1))]
    assert network.lean(lm) is before
    network.train().attention.norm.weight.mul_(2)
    found = network.eval().lean(lm).attention.project(states, range(1))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_drafts_take_the_place_of_earlier_ones(lm: LM) -> None:
    """Rows behind the text are no part of it."""
    network = JakiroNetwork.fresh(lm, inner=8).eval().requires_grad_(False)
    context, fresh, ids = Context(network, lm), Context(network, lm), list(range(8))
    states = torch.randn(7, lm.width)
    context.add(states[:5], 5)
    _, queries = context.read(ids[:6])
    context.put(5, torch.full_like(queries, 9.0), torch.full_like(queries, 9.0))
    context.add(states[5:], 7)
    fresh.add(states, 7)
    for mine, expected in zip(context.rows(ids), fresh.rows(ids), strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["jakiro", "chimera"])
def test_a_short_list_has_the_heads_first_rows_and_is_kept_with_the_drafter(lm: LM, kind: str, tmp_path: Path) -> None:
    network = KINDS[kind].fresh(lm).eval().requires_grad_(False)
    network.shortlist = 7
    save(network, lm, tmp_path / "short", {})
    read = load(tmp_path / "short", KINDS[kind], lm)
    states = torch.randn(3, lm.width)
    assert torch.allclose(read.lean(lm).logits(lm, states), lm.head(states)[:, :7], atol=1e-5)
    sheet = tmp_path / "short" / SHEET
    whole = {name: value for name, value in json.loads(sheet.read_text()).items() if name != "shortlist"}
    sheet.write_text(json.dumps(whole))
    assert load(tmp_path / "short", KINDS[kind], lm).lean(lm).logits(lm, states).shape == (3, lm.vocab_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_that_was_loaded_knows_what_its_drafts_cost(lm: LM, kind: str, tmp_path: Path) -> None:
    network = KINDS[kind].fresh(lm)
    assert network.seconds(3) == 0.0
    save(network, lm, tmp_path / kind, {})
    read = load(tmp_path / kind, KINDS[kind], lm)
    assert read.seconds(0) == 0.0
    assert 0.0 < read.seconds(1) <= read.seconds(2) <= read.seconds(5) < 1.0
    read.first, read.further = 3.0, 1.0
    assert read.seconds(4) == {"blockwise_parallel": 3.0, "jakiro": 5.0, "mlp_speculator": 5.0}.get(kind, 6.0)


def test_an_early_exit_drafts_what_it_learns(lm: LM) -> None:
    """Token by token in the buffer, against all tokens at once behind a mask."""
    network: Any = KINDS["eesd"].fresh(lm, 3)
    for norm in (network.attention.norm, network.before, network.norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    network.eval().requires_grad_(False)
    states = torch.randn(9, lm.width, generator=torch.Generator().manual_seed(0))
    span, places = range(9), torch.arange(9)
    expected = network(states, span, network.attention.rows(states, span), places[:, None] >= places)
    context = Context(network, lm)
    context.add(states[:5], 5)
    context.rows([0] * 6)
    for place in range(5, 9):
        found = context.lean.step(context, states[place : place + 1], place)
        torch.testing.assert_close(found[0], expected[place], rtol=1e-4, atol=1e-5)
    context.add(states[5:6], 6)  # what follows another token than was drafted takes the drafts' places
    context.rows([0] * 7)
    found = context.lean.step(context, states[8:], 6)
    at = torch.tensor([*range(6), 8])
    short = states[at]
    rows = network.attention.rows(short, range(7))
    torch.testing.assert_close(found[0], network(short, range(7), rows, places[:7, None] >= places[:7])[-1])


@pytest.mark.parametrize("method", ["blockwise_parallel", "blockwise_drafts", *(k for k in KINDS if "block" not in k)])
def test_drafters_of_a_model_in_half_precision(method: str) -> None:
    """What is embedded runs in bfloat16, where the laws, which need float32, do not look."""
    model = segue.model("mini-draft", dtype="bfloat16")
    kind = "blockwise_parallel" if method == "blockwise_drafts" else method
    heads = fitted(KINDS[kind].fresh(model.lm, 1), model.lm)
    for temperature in (0.0, 1.0):
        chosen = segue.method(method, heads=heads, budget="fixed")  # whether it pays or not
        answer = model.generate("Once upon a time", method=chosen, max_tokens=12, temperature=temperature, seed=1)
        assert answer.stats.drafted > 0
        assert len(answer.tokens) == 12
