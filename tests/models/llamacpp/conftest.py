"""llama.cpp by its low-level calls: quiet, one thread, float32 throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from segue.models.source import EMBEDDED

Load = Callable[[Path], Any]
Logits = Callable[[Path, list[int]], np.ndarray[Any, Any]]


@pytest.fixture(scope="session")
def mini() -> tuple[Any, Any]:
    place = str(EMBEDDED / "mini")
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(place)


@pytest.fixture(scope="session")
def cpp() -> Iterator[Any]:
    """The module llama_cpp, with its log switched off."""
    module = pytest.importorskip("llama_cpp")
    quiet = module.llama_log_callback(lambda level, text, data: None)
    module.llama_log_set(quiet, None)
    module.llama_backend_init()
    yield module
    assert quiet is not None  # llama.cpp holds only a pointer to it


@pytest.fixture(scope="session")
def load(cpp: Any) -> Iterator[Load]:
    """load(path) -> llama.cpp's model pointer, freed at the end."""
    models = []

    from segue.models.llamacpp.load import model_options

    def start(path: Path, vocabulary_only: bool = False) -> Any:
        params = model_options()
        params.n_gpu_layers = 0
        params.use_mmap = False
        params.vocab_only = vocabulary_only
        model = cpp.llama_model_load_from_file(str(path).encode(), params)
        assert model, path
        models.append(model)
        return model

    yield start
    for model in models:
        cpp.llama_model_free(model)


@pytest.fixture(scope="session")
def logits(cpp: Any, load: Load) -> Logits:
    """logits(path, ids) -> (T, V) in one batch."""

    def run(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
        model = load(path)
        params = cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = cpp.GGML_TYPE_F32
        params.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = cpp.llama_init_from_model(model, params)
        batch = cpp.llama_batch_init(len(ids), 0, 1)
        try:
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.n_tokens = len(ids)
            assert cpp.llama_decode(context, batch) == 0
            size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
            rows = [np.ctypeslib.as_array(cpp.llama_get_logits_ith(context, i), (size,)) for i in range(len(ids))]
            return np.stack([row.copy() for row in rows])
        finally:
            cpp.llama_batch_free(batch)
            cpp.llama_free(context)

    return run
