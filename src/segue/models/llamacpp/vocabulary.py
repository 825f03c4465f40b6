"""A transformers tokenizer as GGUF metadata, from what its tokenizer.json states and from how it behaves."""

from __future__ import annotations

import json
from typing import Any

from segue.models.llamacpp import sentencepiece
from segue.models.llamacpp.names import COMPOSED, PREFIX
from segue.models.llamacpp.pretokenizer import pretokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")


def write_vocabulary(writer: Any, tokenizer: Any, size: int, ends: list[int]) -> None:
    """Write the vocabulary, filled up to `size` rows. `ends`: further tokens that end an answer.

    None stands for no vocabulary. Raises ValueError for a tokenizer that llama.cpp cannot reproduce.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"a {type(tokenizer).__name__} has no tokenizer.json, from which GGUF vocabularies are made")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise ValueError(f"a {state['model']['type']} tokenizer is not written to GGUF: only BPE is")
    tokens = _tokens(tokenizer, size)
    added = {entry["content"]: entry for entry in state["added_tokens"]}
    for entry in added.values():
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry[flag]]
        if flags:
            raise ValueError(f"the token {entry['content']!r} is matched with {', '.join(flags)}: GGUF cannot say that")
    if state["model"]["byte_fallback"]:
        _write_sentencepiece(writer, state, tokens, added)
    else:
        _write_bytelevel(writer, state, tokens)
    writer.add_token_list(_filled(tokens))
    unknown, single = (tokenizer.unk_token, sentencepiece.BYTES) if state["model"]["byte_fallback"] else (None, [])
    writer.add_token_types([_type(token, added, unknown, single) for token in tokens])
    _write_ends(writer, tokenizer, ends)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _tokens(tokenizer: Any, size: int) -> list[str | None]:
    """The text of each row; None where the model has a row that the tokenizer does not use."""
    tokens: list[str | None] = [None] * size
    for token, number in tokenizer.get_vocab().items():
        if number >= size:
            raise ValueError(f"the tokenizer's token {number} has no row in the model, which has {size}")
        tokens[number] = token
    return tokens


def _filled(tokens: list[str | None]) -> list[str]:
    """A text of its own for every row: llama.cpp refuses the same one twice."""
    taken = set(tokens)
    mark = "PAD"
    while any(f"[{mark}{i}]" in taken for i in range(len(tokens))):
        mark += "_"
    return [f"[{mark}{i}]" if token is None else token for i, token in enumerate(tokens)]


def _write_bytelevel(writer: Any, state: dict[str, Any], tokens: list[str | None]) -> None:
    normalizer = state["normalizer"]
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"the tokenizer rewrites text ({normalizer['type']}), which llama.cpp does not")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pretokenizer(state))
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bool(COMPOSED, normalizer is not None)


def _write_sentencepiece(
    writer: Any, state: dict[str, Any], tokens: list[str | None], added: dict[str, dict[str, Any]]
) -> None:
    scores = sentencepiece.scores(state, set(added))
    where = sentencepiece.prefix(state)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(token or "", 0.0) for token in tokens])
    writer.add_add_space_prefix(bool(where))
    if where in ("first", "always"):
        writer.add_string(PREFIX, where)


def _type(token: str | None, added: dict[str, dict[str, Any]], unknown: str | None, single: list[str]) -> int:
    if token is None:
        return UNUSED
    if token == unknown:
        return UNKNOWN
    if token in added:
        return CONTROL if added[token]["special"] else USER_DEFINED
    return BYTE if token in single else NORMAL


def _write_ends(writer: Any, tokenizer: Any, ends: list[int]) -> None:
    """Special ids, and which of them a text gets: as the tokenizer treats one, whatever its settings say."""
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    further = [number for number in ends if number != tokenizer.eos_token_id]
    for number, add in zip(further, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)
    bare, whole = (tokenizer("x", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    front = whole[:1] == [tokenizer.bos_token_id] and whole != bare
    back = whole[-1:] == [tokenizer.eos_token_id] and len(whole) == len(bare) + 1 + front
    if whole != [tokenizer.bos_token_id] * front + bare + [tokenizer.eos_token_id] * back:
        raise ValueError(f"the tokenizer puts {whole} around {bare}: GGUF can say bos in front and eos behind only")
    writer.add_add_bos_token(front)
    writer.add_add_eos_token(back)
