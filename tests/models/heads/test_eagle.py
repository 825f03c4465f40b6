"""Heads of EAGLE against the published formula, in both forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segue import catalog
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.worlds import World, network, network_world, timeless
from segue.models.heads.eagle import EagleNetwork, Shape
from segue.models.lm import LM
from segue.models.transformers.load import wrap
from tests.models.heads.published_eagle import PROMPT, Published, agrees, drafted_rows, known, read, write

CASES = [("llama", False, 2), ("llama", True, 4), ("qwen2", True, 1)]  # family, bias of fc, heads of keys
cases = pytest.mark.parametrize(("family", "bias", "key_heads"), CASES)


@dataclass(frozen=True)
class Pair:
    """A tiny world, and the same network for transformers alone."""

    world: World
    base: Any

    @property
    def lm(self) -> LM:
        return self.world.lm


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(network_world(request.param), network(request.param))


@pytest.fixture(scope="module")
def llama() -> Pair:
    return Pair(network_world("llama"), network("llama"))


@torch.no_grad()
def training_rows(lm: LM, heads: EagleNetwork, prompt: list[int], drafted: list[int]) -> Tensor:
    """The same of the form that has a mask over the whole text."""
    states, ids, rows = known(lm, prompt), list(prompt), []
    for token in [*drafted, -1]:
        entering = heads.entering(lm, states, torch.tensor(ids[1:]))
        span, places = range(len(states)), torch.arange(len(states))
        guessed, _ = heads(entering, span, heads.attention.rows(entering, span), places[:, None] >= places)
        rows.append(lm.head(guessed[-1]))
        states, ids = torch.cat([states, guessed[-1:]]), [*ids, token]
    return torch.stack(rows)


@cases
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_both_forms_say_what_the_published_formula_says(
    pair: Pair, tmp_path: Path, family: str, bias: bool, key_heads: int, file: str
) -> None:
    """The first guess, and two that are chained behind it."""
    theirs = Published(pair.base, family, bias, key_heads)
    heads = read(pair.lm, write(tmp_path / "eagle", theirs.config(), theirs.weights(), file))
    expected = theirs.rows(PROMPT, [50, 7])
    assert agrees(training_rows(pair.lm, heads, PROMPT, [50, 7]), expected)
    assert agrees(drafted_rows(pair.lm, heads, PROMPT, [50, 7]), expected)


@pytest.mark.parametrize(
    "wrong", ["first norm", "state before the last norm", "base of the angles", "epsilon", "order"]
)
def test_no_other_wiring_says_the_same(llama: Pair, tmp_path: Path, wrong: str) -> None:
    """So the comparison above would see each of these mistakes."""
    theirs = Published(llama.base)
    config, weights = theirs.config(), theirs.weights()
    if wrong == "base of the angles":
        config["rope_theta"] = 10_000.0
    elif wrong == "epsilon":
        config["rms_norm_eps"] = 1e-6
    elif wrong == "order":
        weights["fc.weight"] = weights["fc.weight"].roll(32, 1)
    heads = read(llama.lm, write(tmp_path / "eagle", config, weights))
    if wrong == "first norm":
        heads.train().attention.norm = nn.RMSNorm(32, eps=1e-6)
        heads.eval()
    expected = theirs.rows(PROMPT, [50], normalised=wrong != "state before the last norm")
    assert not agrees(training_rows(llama.lm, heads, PROMPT, [50]), expected)
    assert not agrees(drafted_rows(llama.lm, heads, PROMPT, [50]), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@cases
def test_heads_draft_and_change_no_token(
    pair: Pair, tmp_path: Path, temperature: float, family: str, bias: bool, key_heads: int
) -> None:
    theirs = Published(pair.base, family, bias, key_heads)
    folder = write(tmp_path / "eagle", theirs.config(), theirs.weights())
    settings = Settings(max_tokens=24, ignore_eos=True, temperature=temperature, seed=1)
    answers = decode(pair.lm, catalog.build("jakiro", heads=str(folder)), pair.world.prompts, settings)
    for prompt, answer in zip(pair.world.prompts, answers, strict=True):
        assert answer.stats.drafted > 0
        if not temperature:
            assert answer.tokens == pair.world.oracle.answer(prompt, settings).tokens


def test_heads_that_know_the_next_state_are_accepted(tmp_path: Path) -> None:
    """A base whose layers add nothing: its state is the token's row, normalised, and rows are made of one size, so
    that a product with the norm's weight says it exactly. Heads of that product alone are right at every place."""
    base = network("llama")
    with torch.no_grad():
        table = base.get_input_embeddings().weight
        table.div_(table.pow(2).mean(-1, keepdim=True).sqrt())
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    theirs = Published(base)
    theirs.layers[0].self_attn.o_proj.weight.zero_()
    theirs.layers[0].mlp.down_proj.weight.zero_()
    theirs.fc.weight.copy_(torch.cat([base.model.norm.weight.diag(), torch.zeros(32, 32)], 1))
    folder = write(tmp_path / "eagle", theirs.config(), theirs.weights())
    lm = timeless(wrap(base, name="rows"))
    settings = Settings(max_tokens=24, ignore_eos=True)
    method = catalog.build("jakiro", heads=str(folder), depth=5, width=1, nodes=5)
    (answer,) = decode(lm, method, [PROMPT], settings)
    (plain,) = decode(lm, catalog.build("plain"), [PROMPT], settings)
    assert answer.tokens == plain.tokens
    assert answer.stats.accepted == answer.stats.drafted
    assert answer.stats.target_forwards == 5  # one for the prompt, and six tokens with each that follows


def test_heads_are_even_and_keys_are_shared_equally() -> None:
    with pytest.raises(ValueError, match="4 heads of 7 numbers"):
        Shape(32, 96, head_size=7)
    with pytest.raises(ValueError, match="with 3 heads of keys are not allowed"):
        Shape(32, 96, key_heads=3)
