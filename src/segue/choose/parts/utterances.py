"""Where the utterances of a dialogue end, in the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segue.models.lm import LM

LINE = "\n"


def check_mark(mark: Any) -> None:
    """ValueError where this cannot mark an end: it is text, a token id, or several token ids."""
    ids = (mark,) if isinstance(mark, int) else mark
    whole = isinstance(ids, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if not isinstance(mark, str) and not (whole and len(ids)):
        raise ValueError(
            f"eou={mark!r} is not allowed: the text that ends an utterance, a token id or several; left out, it is the "
            "model's end-of-turn token where the prompt has any, else a line break"
        )


def utterance_ends(lm: LM, prompt: Sequence[int], mark: Any = "") -> list[int]:
    """The places in a prompt of the tokens that end an utterance, ascending. `mark` is as in `check_mark`, of which ""
    is the choice by itself. An utterance without a word is none; what nothing ends, such as the beginning of the answer
    ("Assistant:"), does not count."""
    if not isinstance(mark, str):
        ids = frozenset([mark] if isinstance(mark, int) else mark)
        lm.check_vocabulary(sorted(ids))
        return _marked(lm, prompt, ids)
    if mark and lm.tokenizer is None:
        raise ValueError(f"eou={mark!r} is text, and {lm.name} has no tokenizer: give token ids")
    turns = lm.eos_ids | {token for token in [getattr(lm.tokenizer, "eos_token_id", None)] if token is not None}
    found = [] if mark else _marked(lm, prompt, turns)
    return found if found or lm.tokenizer is None else _behind(lm, prompt, mark or LINE)


def _marked(lm: LM, prompt: Sequence[int], ids: frozenset[int]) -> list[int]:
    """Tokens that are one of these, behind something that is said."""
    found, before = [], 0
    for i, token in enumerate(prompt):
        if token in ids:
            said = prompt[before:i]
            if said and (lm.tokenizer is None or lm.decode(said).strip()):
                found.append(i)
            before = i + 1
    return found


def _behind(lm: LM, prompt: Sequence[int], mark: str) -> list[int]:
    """Tokens in which an occurrence of a text ends, which may be spread over as many tokens as it has bytes, behind
    something that is said."""
    reach = len(mark.encode())
    found, before = [], 0
    for i in range(len(prompt)):
        window = prompt[max(0, i - reach) : i + 1]
        if lm.decode(window).count(mark) > lm.decode(window[:-1]).count(mark):
            if lm.decode(prompt[before : i + 1]).replace(mark, "").strip():
                found.append(i)
            before = i + 1
    return found
