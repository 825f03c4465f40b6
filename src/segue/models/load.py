"""From a name to a language model, by the backend that can read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segue.models.lm import LM
from segue.models.variant import LLAMA_CPP, PRECISIONS, TRANSFORMERS

GGUF_OPTIONS = ("quantize", "kv_dtype", "kv_rows", "sequences", "threads")


def load(source: str | os.PathLike[str] | None = None, *, backend: str | None = None, **options: Any) -> LM:
    """Load a model: a folder, a hub id or an embedded one through transformers, a GGUF file through llama.cpp.

    With backend="llama.cpp" a checkpoint is converted first (once: the file is kept in Segue's cache), and `quantize`
    is the kind of file: f16 if left out, f32, q8_0, q4_0. Other `options` are those of the backend's own loader.
    """
    if backend is not None and backend not in PRECISIONS:
        raise ValueError(f"backend={backend!r} is unknown: choose from {', '.join(PRECISIONS)}")
    is_file = source is not None and str(source).endswith(".gguf") and Path(source).expanduser().is_file()
    if is_file or backend == LLAMA_CPP:
        options = {name: value for name, value in options.items() if value is not None}
        strange = next((name for name in options if name not in GGUF_OPTIONS), None)
        if strange is not None or (is_file and "quantize" in options):
            name = strange or "quantize"
            raise ValueError(
                f"{name}={options[name]!r} means nothing to a GGUF file, which llama.cpp runs: leave it out"
            )
        from segue.models.llamacpp.load import load as load_gguf
        from segue.models.llamacpp.load import open_checkpoint

        if source is None or not is_file:
            return open_checkpoint(source, **options)
        if backend == TRANSFORMERS:
            raise ValueError(f"{source} is a GGUF file, which llama.cpp runs: leave the backend out")
        return load_gguf(source, **options)
    from segue.models.transformers.load import load as load_transformers

    return load_transformers(source, **options)
