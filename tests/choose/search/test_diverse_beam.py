"""Diverse beam search: the card's checks beside the law of the published formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.parts.beam import Beam
from segue.choose.search.diverse_beam import DiverseBeam
from segue.data import Candidate
from segue.laws.base import LawBroken
from segue.laws.targets.diverse_beam import hold
from segue.laws.worlds import network_world

PROMPTS = ["Once upon a time", "User: Where can I eat?\nAssistant:", "The capital of France is"]


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def candidates(model: Model, method: Any, prompt: str = PROMPTS[0], **settings: Any) -> list[Candidate]:
    found = model.generate(prompt, method=method, **{"max_tokens": 12, "ignore_eos": True} | settings).candidates
    assert found is not None
    return list(found)


def test_without_a_penalty_the_groups_are_copies_of_one_small_beam(model: Model) -> None:
    found = candidates(model, DiverseBeam(beams=6, groups=3, strength=0.0))
    small = candidates(model, segue.method("beam", beams=2))
    texts = [c.tokens for c in found]
    assert all(texts.count(c.tokens) == 3 for c in small)
    assert len(texts) == 6


def test_an_endless_penalty_gives_every_group_another_first_token(model: Model) -> None:
    found = candidates(model, DiverseBeam(beams=4, groups=4, strength=1e6, rank="logp"))
    assert len({c.tokens[0] for c in found}) == 4


def test_the_first_group_is_a_small_beam(model: Model) -> None:
    for prompt in PROMPTS:
        small = candidates(model, segue.method("beam", beams=2), prompt)
        found = candidates(model, DiverseBeam(beams=4, groups=2, strength=3.0), prompt)
        assert all(c.tokens in [f.tokens for f in found] for c in small)


def test_its_candidates_are_more_diverse_than_a_beams(model: Model) -> None:
    """Distinct bigrams over all candidates, as in the paper, at the same number of forwards."""

    def distinct(method: Any) -> float:
        grams, total = set(), 0
        for prompt in PROMPTS:
            for i, c in enumerate(candidates(model, method, prompt)):
                pairs = list(zip(c.tokens, c.tokens[1:], strict=False))
                grams |= {(prompt, pair) for pair in pairs}
                total += len(pairs)
                assert i < 4
        return len(grams) / total

    assert distinct(DiverseBeam(strength=1.0)) > 1.3 * distinct(segue.method("beam"))


def test_log_probabilities_leave_the_penalty_out(model: Model) -> None:
    found = candidates(model, DiverseBeam(strength=0.2))
    free = candidates(model, DiverseBeam(strength=0.2, rank="logp"))
    assert {tuple(c.tokens) for c in found} == {tuple(c.tokens) for c in free}
    assert [c.logp for c in free] == sorted((c.logp for c in free), reverse=True)
    assert any(c.score < c.logp / len(c.tokens) - 0.01 for c in found)


def test_a_penalty_for_the_wrong_groups_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    world = network_world("llama")
    propose = Beam.propose
    monkeypatch.setattr(Beam, "propose", lambda self, bias=None: propose(self, None if bias is None else bias * 0.5))
    with pytest.raises(LawBroken):
        hold(replace(DiverseBeam(), groups=2), world)


@pytest.mark.parametrize(
    "fields", [{"groups": 3}, {"groups": 0}, {"strength": -1.0}, {"rank": "best"}, {"beams": 0, "groups": 1}]
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"{name}="):
        DiverseBeam(**fields)
