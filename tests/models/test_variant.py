"""A variant is one word, loads as what it says, and a wrong one is told with the others."""

from __future__ import annotations

import pytest

import segue
from segue.models import variant
from segue.models.variant import Variant, everything, parse, worth_trying


def test_names_and_options_go_both_ways() -> None:
    for one in everything():
        if one.backend == "transformers":
            assert parse(str(one)) == one
    assert str(Variant("llama.cpp", "q8_0")) == "llama.cpp/q8_0"
    assert parse("int8").options() == {"quantize": "int8"}
    assert parse("bfloat16").options() == {"dtype": "bfloat16"}
    assert Variant("llama.cpp", "f16").options() == {"backend": "llama.cpp", "quantize": "f16"}
    assert [v.lossy for v in map(parse, ("float32", "bfloat16", "int8", "int4"))] == [False, False, True, True]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4"])
def test_they_load_as_what_they_say(name: str) -> None:
    lm = segue.model(**parse(name).options()).lm
    assert (lm.backend, lm.precision) == ("transformers", name)


@pytest.mark.parametrize("text", ["int9", "q8_0", "llama.cpp/int8", "onnx/int8", "", "/"])
def test_unknown_ones_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="choose from float32, bfloat16, float16, int8, int4"):
        parse(text)


def test_without_llamacpp_its_variants_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant, "has_llamacpp", lambda: False)
    assert {v.backend for v in worth_trying()} == {"transformers"}
    with pytest.raises(ValueError, match="needs llama-cpp-python and gguf"):
        parse("llama.cpp/q8_0")
