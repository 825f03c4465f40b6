"""A tiny network for the laws."""

from __future__ import annotations

import pytest

from segue.laws.worlds import World, network_world


@pytest.fixture(scope="session")
def llama() -> World:
    return network_world("llama")
