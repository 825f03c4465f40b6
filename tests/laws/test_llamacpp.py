"""Every method of the catalog is put to its laws on the second backend as well, with transformers as the oracle."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from segue import catalog
from segue.data import CapabilityError
from segue.laws.suite import check, refused
from segue.laws.worlds import World

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")


@functools.cache
def the_world(family: str) -> World:
    from segue.laws.worlds import gguf_world

    return gguf_world(family)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    assert torch.get_num_threads() == 1
    return


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", list(catalog.entries()))
def test_the_laws_hold(name: str, family: str) -> None:
    if refused(name, {"hidden states", "a choice of layers", "attention weights"}):
        with pytest.raises(CapabilityError, match=r"llama\.cpp"):
            check(name, the_world(family))
        return
    reports = check(name, the_world(family))
    if "SameTarget" in reports:
        assert reports["SameTarget"]["tokens"] > 100
        return
    assert reports["SameTokens"].tokens > 200
    assert len(reports["SameTokens"].near_ties) <= 2
    assert ("less work" in reports) == catalog.find(name).family.startswith("decode/speculative")
