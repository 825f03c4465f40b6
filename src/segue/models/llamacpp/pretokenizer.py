"""How a tokenizer.json cuts text before merging, under the name that llama.cpp has for it.

llama.cpp holds the cutting of known model families as code, so a file can only name one of them. A way of cutting is
recognised by its structure and regular expression, never by the name of a model.
"""

from __future__ import annotations

from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
QWEN2 = _WORDS + r"\p{N}" + _REST
# by cutting, and by whether a word that is a token is taken whole (ignore_merges)
NAMES = {
    ("bytes", False): "gpt-2",
    ("digits, bytes", False): "smollm",
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",  # the same cutting
    (QWEN2, False): "qwen2",
}


def pretokenizer(state: dict[str, Any]) -> str:
    """The name for tokenizer.ggml.pre; ValueError where llama.cpp has none that cuts alike."""
    model = state["model"]
    whole = bool(model.get("ignore_merges"))
    name = NAMES.get((_cutting(state["pre_tokenizer"] or {}), whole))
    if name is None:
        raise ValueError(
            "the pre-tokenizer of this tokenizer is none that is known to be in llama.cpp "
            f"({_short(state['pre_tokenizer'])}, ignore_merges {whole}): only those of GPT-2, SmolLM, Llama 3 and "
            "Qwen 2 are written to GGUF"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"the tokenizer's merges use {key}={model[key]!r}, which GGUF cannot say")
    return name


def _cutting(part: dict[str, Any]) -> str:
    parts = part["pretokenizers"] if part.get("type") == "Sequence" else [part]
    kinds = [p.get("type") for p in parts]
    if not parts or kinds[-1] != "ByteLevel" or parts[-1]["add_prefix_space"]:
        return ""
    if not parts[-1]["use_regex"]:
        cut = parts[0]
        regex = cut.get("pattern", {}).get("Regex", "") if kinds == ["Split", "ByteLevel"] else ""
        return regex if regex and cut["behavior"] == "Isolated" and not cut["invert"] else ""
    if kinds == ["ByteLevel"]:
        return "bytes"
    return "digits, bytes" if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] else ""


def _short(part: Any) -> str:
    text = str(part)
    return text if len(text) <= 200 else text[:200] + "..."
