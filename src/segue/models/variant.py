"""One model in several forms: a backend and the precision of its weights, named in one word each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from segue.models.llamacpp.names import KINDS

TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"
PRECISIONS = {
    TRANSFORMERS: ("float32", "bfloat16", "float16", "int8", "int4"),
    LLAMA_CPP: KINDS,
}
QUANTIZED = ("int8", "int4")
LOSSY = (*QUANTIZED, "q8_0", "q4_0")


@dataclass(frozen=True)
class Variant:
    """Written "int8", or "llama.cpp/q8_0" where the backend is not transformers."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return self.precision if self.backend == TRANSFORMERS else f"{self.backend}/{self.precision}"

    def options(self) -> dict[str, Any]:
        """How `segue.model` loads it."""
        if self.backend == LLAMA_CPP:
            return {"backend": self.backend, "quantize": self.precision}
        return {"quantize": self.precision} if self.precision in QUANTIZED else {"dtype": self.precision}

    @property
    def lossy(self) -> bool:
        """Whether its weights are rounded to fewer than 16 bits."""
        return self.precision in LOSSY


def parse(text: str) -> Variant:
    """The variant of that name; ValueError names those there are, and what is missing for one that is known."""
    backend, slash, precision = text.strip().rpartition("/")
    found = Variant(backend if slash else TRANSFORMERS, precision)
    if found.backend not in PRECISIONS or precision not in PRECISIONS[found.backend]:
        raise ValueError(f"variant {text!r} is unknown: choose from {', '.join(str(v) for v in everything())}")
    if found.backend == LLAMA_CPP and not has_llamacpp():
        raise ValueError(f"variant {text!r} needs llama-cpp-python and gguf: pip install 'segue[llamacpp]'")
    return found


def everything() -> list[Variant]:
    """All variants, the exact ones of each backend first."""
    return [Variant(backend, precision) for backend, precisions in PRECISIONS.items() for precision in precisions]


def has_llamacpp() -> bool:
    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def worth_trying() -> list[Variant]:
    """Those that can be loaded here on a CPU; float16 is slow there."""
    return [v for v in everything() if v.precision != "float16" and (v.backend != LLAMA_CPP or has_llamacpp())]
