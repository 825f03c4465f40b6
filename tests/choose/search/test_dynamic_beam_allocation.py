"""Dynamic beam allocation: the card's checks beside the law (inclusion, optimum by enumeration, log-probabilities)."""

from __future__ import annotations

from typing import Any

import pytest

import segue
from segue.api import Model
from segue.choose.search import dynamic_beam_allocation as dba
from segue.choose.search.dynamic_beam_allocation import DynamicBeamAllocation, allocate, equal
from segue.data import ConstraintError
from segue.laws.base import LawBroken, decode
from segue.laws.targets.dynamic_beam_allocation import has, hold
from segue.laws.worlds import network_world, toy_world

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


def test_phrases_of_text_stand_in_every_candidate(model: Model) -> None:
    phrases = ["little girl", "the forest", "a red apple"]
    answer = model.generate(PROMPT, method=DynamicBeamAllocation(beams=8, phrases="|".join(phrases)), max_tokens=40)
    assert answer.candidates
    for candidate in answer.candidates:
        assert all(phrase in candidate.text for phrase in phrases)


def test_cost_does_not_grow_with_the_number_of_phrases(model: Model) -> None:
    """At most as many rows a step as there are beams, whatever is asked for."""
    rows, forwards = [], []
    for phrases in ("", "forest", "forest|apple|king|river|stone|night"):
        answer = model.generate(
            PROMPT, method=DynamicBeamAllocation(beams=5, phrases=phrases), max_tokens=24, ignore_eos=True
        )
        rows.append(answer.stats.rows - answer.stats.prompt_tokens)
        forwards.append(answer.stats.target_forwards)
    assert forwards == [24, 24, 24]
    assert max(rows) <= 23 * 5


def test_more_phrase_tokens_than_beams_are_met_as_well() -> None:
    world = network_world("llama")
    phrases = [[3, 4, 5], [9], [11, 12]]
    (answer,) = decode(world.lm, DynamicBeamAllocation(beams=2, phrases=phrases), [[1, 2]], segue_settings(10))
    assert all(has(answer.tokens, phrase) for phrase in phrases)


def segue_settings(max_tokens: int) -> Any:
    return segue.api.make_settings(max_tokens=max_tokens)


def test_a_repeated_token_does_not_break_a_match() -> None:
    """A A B is met by A A A B: the phrase may begin anew within itself."""
    world = toy_world(2)
    for phrases in ([[0, 0, 1]], [[1, 0, 1]], [[0, 0], [0, 1]]):
        (answer,) = decode(world.lm, DynamicBeamAllocation(beams=3, phrases=phrases), [[0, 0]], segue_settings(5))
        assert all(has(answer.tokens, phrase) for phrase in phrases)


def test_places_are_shared_and_passed_on() -> None:
    assert equal(10, 3) == [3, 3, 4]
    assert equal(2, 4) == [0, 0, 0, 2]
    assert allocate([3, 3, 4], [9, 9, 9]) == [3, 3, 4]
    assert allocate([3, 3, 4], [9, 9, 1]) == [3, 6, 1]
    assert allocate([3, 3, 4], [9, 0, 1]) == [9, 0, 1]
    assert allocate([3, 3, 4], [1, 2, 9]) == [1, 2, 7]
    assert allocate([0, 0, 2], [1, 0, 0]) == [1, 0, 0]


def test_what_cannot_be_met_is_refused_before_any_work(model: Model) -> None:
    with pytest.raises(ConstraintError, match=r"need \d+ tokens, and the answer may have 3: raise max_tokens"):
        model.generate(PROMPT, method=DynamicBeamAllocation(phrases="one two three four five"), max_tokens=3)
    with pytest.raises(ValueError, match="token 96"):
        decode(network_world("llama").lm, DynamicBeamAllocation(phrases=[[96]]), [[1]], segue_settings(4))


def test_banks_that_count_nothing_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dba, "spelling", lambda text, lm: [])
    kept = dba.Phrases.accepts
    monkeypatch.setattr(dba.Phrases, "accepts", lambda self, state: True)
    with pytest.raises(LawBroken):
        hold(DynamicBeamAllocation(), toy_world(3, 2))
    monkeypatch.setattr(dba.Phrases, "accepts", kept)
    hold(DynamicBeamAllocation(), toy_world(3, 2))


def test_it_works_beside_a_constraint_of_the_request(model: Model) -> None:
    answer = model.generate(
        PROMPT, method=DynamicBeamAllocation(phrases="king"), max_tokens=30, regex=r"[a-z ]{10,60}\."
    )
    assert "king" in answer.text
    assert answer.text.endswith(".")
