"""Segue: language models that decode in segments.

lm = segue.model()
lm.generate("Once upon a time", method="lookahead").text
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.api import Model

try:
    __version__ = version("segue")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"

__all__ = ["for_transformers", "method", "methods", "model", "processors"]


def __getattr__(name: str) -> Any:
    """`segue.processors`: methods as processors for transformers' generate, loaded when first asked for."""
    if name == "processors":
        import segue.models.processors as processors

        return processors
    raise AttributeError(f"module 'segue' has no attribute {name!r}")


def model(source: Any = None, **options: Any) -> Model:
    """Load a model: a folder, a hub id, a GGUF file, an embedded one ("mini", "mini-draft", and "mt-mini", which
    translates German), or none for "mini".

    `options`: backend ("transformers", "llama.cpp"), dtype, device, quantize ("int8", ...), invariant, device_map,
    tp_plan, check, lean, and what transformers' from_pretrained takes; for llama.cpp quantize, kv_dtype, kv_rows,
    sequences, threads.
    """
    from segue.api import Model
    from segue.models.load import load

    return Model(load(source, **options))


def method(name: str, /, **fields: Any) -> Any:
    """A method object by name with its fields, e.g. segue.method("lookahead", window=5)."""
    from segue import catalog

    return catalog.build(name, **fields)


def for_transformers(name: str, /, *, tokenizer: Any = None, **fields: Any) -> Any:
    """A method as the loop of transformers' own generate, e.g.
    model.generate(ids, custom_generate=segue.for_transformers("diverse_beam", groups=4))."""
    from segue import interop

    return interop.for_transformers(name, tokenizer=tokenizer, **fields)


def methods() -> list[dict[str, Any]]:
    """The cards of all methods: name, family, paper, claim, exactness, fields, measured result."""
    from segue import catalog

    return [entry.as_dict() for entry in catalog.entries().values()]
