"""The methods of the catalog keep their promises on encoder-decoders: transformers' generate is the oracle."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from segue import catalog
from segue.data import CapabilityError, Settings
from segue.decode.exit.depth_decay import DepthDecay
from segue.decode.speculative.base import Budget
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges
from segue.laws.same_tokens import same_tokens
from segue.laws.suite import TUNED, repetitive
from segue.laws.worlds import TEXT_TO_TEXT, World, network_world
from segue.models.run import Run
from segue.models.tuning import TUNINGS
from tests.laws.conftest import assert_promises_hold, families

METHODS = list(catalog.entries())


@functools.cache
def the_world(family: str) -> World:
    return network_world(family)


CASES = [(name, family) for family in TEXT_TO_TEXT for name in METHODS if family in families(name, TEXT_TO_TEXT)]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_the_laws_hold(name: str, family: str) -> None:
    lacking = {"a choice of layers", "a dense datastore", *(TUNED + kind for kind in TUNINGS)}
    if family.startswith("t5"):
        lacking.add("attention weights")  # of layers with a bias
    assert_promises_hold(name, the_world(family), lacking, r"encoder-decoder|attention")


def test_fewer_layers_are_refused() -> None:
    world = the_world("t5")
    with pytest.raises(CapabilityError, match="its layers cannot be chosen"):
        decode(world.lm, DepthDecay(alpha=0.5, n_min=1, start_layer=0), [world.prompts[0]], Settings(max_tokens=8))


def test_edges_fill_the_decoder_and_its_end_is_forced() -> None:
    for family in ("bart", "marian"):
        world = the_world(family)
        (edge,) = (e for e in edges(world.lm, world.oracle, repetitive(world)) if "decoder" in e.name)
        (answer,) = decode(world.lm, PromptLookup(), [edge.prompt], edge.settings)
        assert len(answer.tokens) == world.lm.context_length - 1
        assert answer.tokens[-1] == {"bart": 2, "marian": 3}[family]
        assert answer.finish_reason == "length"
    assert the_world("bart").oracle.answer([7, 8, 9], Settings(max_tokens=3)).tokens[0] == 5


def test_a_perfect_draft_is_accepted_and_reads_the_source() -> None:
    for family in TEXT_TO_TEXT:
        world = the_world(family)
        (answer,) = decode(world.lm, DraftModel(draft=world.lm, gamma=4), [world.prompts[2]], Settings(max_tokens=20))
        assert answer.stats.accepted == answer.stats.drafted
        assert answer.stats.tokens_per_forward > 3.5


def test_the_oracle_knows_the_source() -> None:
    """A model that reads another source than the oracle is found out."""
    world = the_world("bart")

    class Deaf(type(world.lm)):  # type: ignore[misc]
        def reading(self, source: Any) -> Any:
            return super().reading([*source[:-1], (source[-1] + 1) % self.vocab_size])

    kept = type(world.lm)
    world.lm.__class__ = Deaf
    try:
        with pytest.raises(LawBroken, match="instead of"):
            same_tokens(PromptLookup(), world.lm, world.oracle, world.prompts, Settings(max_tokens=20))
    finally:
        world.lm.__class__ = kept


def test_prompt_lookup_copies_from_the_source() -> None:
    world = the_world("t5")
    source = [40, 41, 42, 43, 44, 45]
    run = Run(world.lm, source, Settings())
    assert run.source == source
    assert run.ids == [0]
    assert run.seen == [*source, 0]
    for token in (41, 42):
        run.ids.append(token)
        run.seen.append(token)
    method = PromptLookup(draft_tokens=3)
    tree = method.propose(run, method.start(run), Budget(9, 9))
    assert tree.tokens == [42, 43, 44, 45]
