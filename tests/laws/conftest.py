"""Tiny networks run fastest on one thread; more of them only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from segue.laws.worlds import World, network_world


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama() -> World:
    return network_world("llama")
