"""How a file is loaded depends on the processor: what would end the process there is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from segue.models.llamacpp.load import model_options

llama_cpp = pytest.importorskip("llama_cpp")


def test_no_layout_for_amx(tmp_path: Path) -> None:
    usual = llama_cpp.llama_model_default_params().use_extra_bufts
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: sse2 avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n")
    assert model_options(info).use_extra_bufts is False
    info.write_text("flags\t\t: sse2 avx2 avx512_bf16\n")
    assert model_options(info).use_extra_bufts == usual
    assert model_options(tmp_path / "none").use_extra_bufts == usual  # where the system has no such file
