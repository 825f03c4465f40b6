"""DoLa: wrong rules break its law, layers are transformers' own, and bad layers are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import segue
from segue.choose.sample import dola
from segue.choose.sample.dola import DoLa, candidates
from segue.data import CapabilityError, DraftTree, Settings, Want
from segue.laws.base import LawBroken, decode
from segue.laws.targets.dola import hold
from segue.laws.worlds import World, network_world, toy_world
from tests.laws.test_mutations import Mutation

METHOD = DoLa()


@pytest.fixture(scope="module")
def world() -> World:
    return network_world("llama")


def released(logp: Tensor, logq: Tensor) -> Tensor:
    """The divergence of the released code, whose terms go from the mean."""
    m = (logp.exp() + logq.exp()) / 2
    return ((m * (m.log() - logp)).sum(-1) + (m * (m.log() - logq)).sum(-1)) / 2


def nearest(logp: Tensor, logq: Tensor) -> Tensor:
    """The layer that is nearest."""
    return -((logp.exp() - logq.exp()) ** 2).sum(-1)


@pytest.mark.parametrize("wrong", [released, nearest], ids=lambda rule: rule.__name__)
def test_another_choice_of_the_layer_breaks_the_law(
    wrong: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergences are often of one mind: in this world they are not."""
    world = network_world("llama", 2)
    monkeypatch.setattr(dola, "jensen_shannon", wrong)
    with pytest.raises(LawBroken):
        hold(METHOD, world)


MUTATIONS = {
    "nothing is left out": Mutation(DoLa, "_pick", "(mature >= least)", "True", lambda lm: METHOD, 0),
    "the late layer is subtracted": Mutation(
        DoLa, "_pick", "(mature - premature[farthest])", "(premature[farthest] - mature)", lambda lm: METHOD, 0
    ),
    "no contrast": Mutation(DoLa, "_pick", "(mature - premature[farthest])", "mature", lambda lm: METHOD, 0),
    "a threshold above the likeliest": Mutation(
        DoLa, "_pick", "mature[allowed].max() + math.log(", "mature[allowed].max() - math.log(", lambda lm: METHOD, 0
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_breaks_the_law(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name].put(monkeypatch)
    with pytest.raises(LawBroken):
        hold(METHOD, world)


def test_the_layer_after_breaks_the_law(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dola, "candidates", lambda *_: (1,))
    with pytest.raises(LawBroken):
        hold(METHOD, world)


def test_states_that_skip_the_last_norm_break_the_law(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the released code reads them out."""
    forward = type(world.lm).forward

    def bare(self: Any, asks: Any) -> Any:
        found = forward(self, asks)
        head = self.network.get_output_embeddings()
        for (_, _, want), scores in zip(asks, found, strict=True):
            if want.states is not None:
                with torch.no_grad():
                    scores.logits.copy_(head(want.states.clone()))
        return found

    monkeypatch.setattr(type(world.lm), "forward", torch.inference_mode()(bare))
    with pytest.raises(LawBroken):
        hold(METHOD, world)


def test_the_buckets_are_those_of_transformers() -> None:
    """As its generate had them while it had DoLa (4.52)."""
    assert candidates("low", 32, False) == tuple(range(0, 16, 2))
    assert candidates("low", 32, True) == tuple(range(2, 16, 2))
    assert candidates("high", 32, True) == tuple(range(16, 32, 2))
    assert candidates("low", 80, False) == tuple(range(0, 20, 2))
    assert candidates("high", 80, False) == tuple(range(60, 80, 2))
    assert candidates("low", 4, True) == (2,)
    assert candidates("low", 2, True) == (1,)
    assert candidates("low", 1, True) == candidates("high", 1, True) == (0,)
    assert candidates([4, 0, 2], 6, True) == candidates("0,2,4", 6, True) == (0, 2, 4)


@pytest.mark.parametrize("fields", [{"relative_top": 0}, {"relative_top": 1.5}, {"layers": "middle"}, {"layers": [-1]}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"{name}="):
        DoLa(**fields)


def test_a_layer_that_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match=r"layers='0,2' is not allowed: layer 2 of a model with 2"):
        decode(world.lm, DoLa(layers="0,2"), [world.prompts[0]], Settings(max_tokens=2))


def test_a_model_without_hidden_states_is_refused_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.lm, "lacking", frozenset({"hidden states"}), raising=False)
    with pytest.raises(CapabilityError, match="dola needs hidden states"):
        decode(world.lm, METHOD, [world.prompts[0]], Settings(max_tokens=2))


def test_an_end_that_must_not_come_yet_is_not_the_likeliest() -> None:
    """Where only the likeliest token is left and it is forbidden, the likeliest of the others takes its place."""
    toy = toy_world(3, 2)
    for prompt in ([0], [1], [2, 1]):
        settings = Settings(max_tokens=6, min_tokens=6)
        (answer,) = decode(toy.lm, replace(METHOD, relative_top=1.0), [prompt], settings)
        assert answer.tokens == toy.oracle.answer(prompt, settings).tokens


def test_samples_of_one_prompt_read_it_once() -> None:
    model = segue.model()
    found = model.generate("Once upon a time", method=METHOD, max_tokens=8, n=2)
    alone = model.generate("Once upon a time", method=METHOD, max_tokens=8)
    assert [a.tokens for a in found] == [alone.tokens] * 2
    greedy = model.generate("Once upon a time", method="plain", max_tokens=8)
    assert alone.tokens != greedy.tokens
    assert alone.stats.prefill_forwards == 1


def test_tied_heads_are_known() -> None:
    assert network_world("gpt2").lm.tied
    assert not network_world("llama").lm.tied
    assert segue.model().lm.tied


def test_a_table_reads_out_the_states_that_it_is_given() -> None:
    lm: Any = toy_world(2).lm
    state = torch.eye(4, dtype=torch.float64)[[3, 1]]
    (scores,) = lm.forward([(lm.sequence(), DraftTree.alternatives([0, 0]), Want(layers=(), states=state))])
    assert torch.equal(scores.logits, (lm.table + lm.disturbance)[[3, 1]])
