"""A tokenizer.json that holds a SentencePiece BPE with byte fallback (Llama 2, Mistral, TinyLlama), as scores.

llama.cpp has no merges for such a vocabulary: it joins neighbours into the token of the highest score. That is the same
as the merges where they are all the ways to make each token, in the order of the tokens: this is checked.
"""

from __future__ import annotations

from typing import Any

SPACE = "▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}


def prefix(state: dict[str, Any]) -> str:
    """Where a space is put in front: "each" piece between special tokens, as llama.cpp does; "always" and "first" not
    where there is one already; "" nowhere. ValueError for another treatment of spaces."""
    normalizer, cutting = state["normalizer"], state["pre_tokenizer"]
    if cutting is None:
        steps = (normalizer or {}).get("normalizers", [normalizer])
        if steps in ([PREPEND, REPLACE], [REPLACE]):
            return "each" if len(steps) == 2 else ""
    elif cutting["type"] == "Metaspace" and normalizer is None and cutting["replacement"] == SPACE:
        inner = any(SPACE in token[1:] for token in state["model"]["vocab"])
        if not (cutting["split"] and inner):
            scheme: str = cutting["prepend_scheme"]
            return "" if scheme == "never" else scheme
    raise ValueError(
        "the tokenizer treats spaces neither as Llama 2 does nor as its successors do: GGUF cannot say how"
    )


def scores(state: dict[str, Any], added: set[str]) -> dict[str, float]:
    """Minus the rank of each token. ValueError where joining by score could give other tokens than the merges."""
    model = state["model"]
    vocab = model["vocab"]
    if not set(BYTES) <= set(vocab):
        raise ValueError(
            "the tokenizer lacks some of the 256 byte tokens, without which llama.cpp cannot spell all text"
        )
    if model.get("ignore_merges") or model.get("dropout"):
        raise ValueError("the tokenizer takes whole words before merging or merges at random: GGUF cannot say that")
    _check_decoder(state)
    rank: dict[str, int] = {}
    pairs = set()
    last = ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token = left + right
        if token != last and token in rank:
            raise ValueError(f"the merges that make {token!r} are not next to each other: they are no SentencePiece's")
        rank.setdefault(token, len(rank))
        pairs.add((left, right))
        last = token
    skip = added | set(BYTES)
    for token in set(vocab) - skip:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in pairs and pair[0] in vocab and pair[1] in vocab and not skip.intersection(pair):
                raise ValueError(
                    f"the tokenizer never joins {pair[0]!r} and {pair[1]!r} though {token!r} is a token, and llama.cpp "
                    "would: its merges are no SentencePiece's"
                )
    return {token: -float(rank.get(token, len(rank))) for token in vocab}


def _check_decoder(state: dict[str, Any]) -> None:
    steps = [step["type"] for step in (state["decoder"] or {}).get("decoders", [])]
    strip = ["Strip"] if prefix(state) else []
    if steps != ["Replace", "ByteFallback", "Fuse", *strip]:
        raise ValueError(f"the tokenizer decodes by {steps or state['decoder']}, which llama.cpp does not")
