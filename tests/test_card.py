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


def test_cards_are_values() -> None:
    assert dataclasses.replace(CARD) == CARD
    assert hash(CARD) == hash(dataclasses.replace(CARD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.rev = 2  # type: ignore[misc]
