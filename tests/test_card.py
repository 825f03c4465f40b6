from __future__ import annotations

import dataclasses

import pytest

from segue.card import Card, Claim, Limit, Paper, SameDistribution, SameTarget, SameTokens

CARD = Card(
    paper=Paper(id="2211.17192", title="A title", year=2022),
    claim=Claim(value=2.6, unit="speed-up", baseline="greedy", setting="somewhere"),
    exact=(SameTokens(), SameDistribution(), Limit(knob="lenience", exact_at=1.0), SameTarget(target="contrast")),
)


def test_a_card_as_json() -> None:
    data = CARD.as_dict()
    assert data["paper"] == {"id": "2211.17192", "title": "A title", "year": 2022}
    assert data["exact"] == [
        {"class": "SameTokens"},
        {"class": "SameDistribution"},
        {"class": "Limit", "knob": "lenience", "exact_at": 1.0, "begin": 0.0},
        {"class": "SameTarget", "target": "contrast"},
    ]
    assert (data["trains"], data["needs"], data["departs"], data["rev"]) == ("nothing", ("logits",), "", 1)


def test_a_claim_in_words() -> None:
    assert CARD.claim is not None
    assert CARD.claim.figure == "2.6 speed-up"
    assert str(CARD.claim) == "2.6 speed-up over greedy (somewhere)"
    words = Claim(value=None, unit="none", baseline="speculative decoding", setting="more is accepted")
    assert words.figure == "no figure"
    assert str(words) == "no figure against speculative decoding (more is accepted)"


def test_cards_are_values() -> None:
    assert dataclasses.replace(CARD) == CARD
    assert hash(CARD) == hash(dataclasses.replace(CARD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.rev = 2  # type: ignore[misc]
