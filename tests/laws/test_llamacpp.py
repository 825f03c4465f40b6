"""Every method of the catalog is put to its laws on the second backend as well, with transformers as the oracle."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from segue import catalog
from segue.laws.worlds import World
from tests.laws.conftest import assert_promises_hold, families

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")


FAMILIES = ("llama", "qwen2")


@functools.cache
def the_world(family: str) -> World:
    from segue.laws.worlds import gguf_world

    return gguf_world(family)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    assert torch.get_num_threads() == 1
    return


CASES = [(name, family) for family in FAMILIES for name in catalog.entries() if family in families(name, FAMILIES)]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_the_laws_hold(name: str, family: str) -> None:
    world = the_world(family)
    assert_promises_hold(name, world, world.lm.lacking, r"llama\.cpp .*transformers")
