"""A tiny network for the laws, and what every method is held to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set

import pytest

from segue import catalog
from segue.card import SameTarget
from segue.data import CapabilityError
from segue.laws.suite import check, refused
from segue.laws.worlds import World, network_world


@pytest.fixture(scope="session")
def llama() -> World:
    return network_world("llama")


def families(name: str, known: Iterable[str]) -> list[str]:
    """The families that a method is tried on: the first, and one of the others by turns; one by turns for a method that
    has a target of its own, whose law takes many forwards, or is trained. Families differ in how they attend, which
    methods leave to the model. SEGUE_LAWS=all tries every method on every family."""
    all_of_them = list(known)
    if os.environ.get("SEGUE_LAWS") == "all":
        return all_of_them
    turn = list(catalog.entries()).index(name)
    card = catalog.find(name).card
    targets = any(isinstance(promise, SameTarget) for promise in card.exact)
    if targets or any(need.startswith((catalog.TRAINED, catalog.TUNED)) for need in card.needs):
        return [all_of_them[turn % len(all_of_them)]]
    first, *others = all_of_them
    return [first, others[turn % len(others)]]


def assert_promises_hold(name: str, world: World, lacking: Set[str], refusal: str) -> None:
    """A method keeps the promises of its card in a world, or is refused there, with a message that matches, because the
    world lacks what its card needs."""
    entry = catalog.find(name)
    targets = any(isinstance(promise, SameTarget) for promise in entry.card.exact)
    # What only approximates runs at its exact value, where it needs no more than plain decoding.
    if refused(name, lacking) and (entry.same_tokens or targets):
        with pytest.raises(CapabilityError, match=refusal):
            check(name, world)
        return
    reports = check(name, world)
    if "SameTarget" in reports:
        assert reports["SameTarget"]["tokens"] > 100
        return
    assert reports["SameTokens"].tokens > 200
    assert len(reports["SameTokens"].near_ties) <= 2
    assert ("less work" in reports) == catalog.find(name).family.startswith("decode/speculative")
