"""Every method of the catalog is put to every law its card selects, without being named here."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest

from segue import catalog
from segue.card import Card, Paper, SameTarget, SameTokens
from segue.data import Settings
from segue.decode.plain import Plain
from segue.decode.speculative.draft_model import DraftModel
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.suite import check, repetitive
from segue.laws.worlds import FAMILIES, World, network_world, toy_world
from tests.laws.conftest import families

METHODS = list(catalog.entries())
TOYS = {"a table of two": (2, None), "a table of three with an end": (3, 2)}
ONLY_TABLES = {"SameDistribution", "Limit"}  # are enumerated


@functools.cache
def the_world(name: str) -> World:
    return network_world(name) if name in FAMILIES else toy_world(*TOYS[name])


CASES = [
    (name, world)
    for world in (*FAMILIES, *TOYS)
    for name in METHODS
    if world not in FAMILIES or world in families(name, FAMILIES)
]


@pytest.mark.parametrize(("name", "world"), CASES)
def test_the_laws_hold(name: str, world: str) -> None:
    """Every promise of a card that the world can show, which for a table are all of them."""
    reports = check(name, the_world(world))
    promised = {type(promise).__name__ for promise in catalog.find(name).card.exact}
    assert promised
    assert promised - (ONLY_TABLES if world in FAMILIES else set()) <= set(reports)
    if world in FAMILIES:
        assert ("less work" in reports) == catalog.find(name).family.startswith("decode/speculative")
    if "SameTarget" in reports:
        assert reports["SameTarget"]["tokens"] > 100 if world in FAMILIES else reports["SameTarget"]
        return
    report = reports["SameTokens"]
    assert report.tokens > 200
    if report.near_ties:
        print(f"{name} on {world}: forgiven {report.near_ties}")
    # Rounding decides none of these tokens today, and may decide hardly any.
    assert len(report.near_ties) <= 2


def test_edges_end_inside_accepted_drafts() -> None:
    """A perfect draft is always accepted; where fewer tokens were given out than drafted, the end cut it."""
    for name in FAMILIES:
        world = the_world(name)
        perfect = DraftModel(draft=world.lm)
        crossed = []
        for edge in edges(world.lm, world.oracle, repetitive(world)):
            with ending_at(world.lm, edge.eos):
                (answer,) = decode(world.lm, perfect, [edge.prompt], edge.settings)
            if answer.finish_reason == "stop" and answer.stats.accepted < answer.stats.drafted:
                crossed.append(edge.name)
        assert "end of text in the first draft" in crossed


@dataclass(frozen=True)
class Upwards(Plain):
    """A method of somebody else."""

    card = Card(paper=Paper(id="", title="", year=0), claim=None, exact=(SameTarget(target="none"),))


def test_a_promise_without_a_law_is_refused() -> None:
    with pytest.raises(LawBroken, match="no brute force is written for the target 'none'"):
        check(Upwards, toy_world(2))


def test_a_class_of_somebody_else_is_checked_the_same_way() -> None:
    @dataclass(frozen=True)
    class Mine(Plain):
        card = Card(paper=Paper(id="", title="", year=0), claim=None, exact=(SameTokens(),))

    world = toy_world(2)
    assert list(check(Mine, world)) == ["SameTokens"]

    @dataclass(frozen=True)
    class Late(Mine):
        def run(self, run: Any) -> Any:
            run.settings = Settings(max_tokens=20, stop_tokens=())
            return super().run(run)

    with pytest.raises(LawBroken) as caught:
        check(Late, world)
    assert "at the edge" in caught.value.__notes__[0]
