"""The draft model that goes with a target: loaded once, same vocabulary or refused."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.models.lm import LM


def companion(target: LM, draft: str | LM | None) -> LM:
    """The draft model for `target`: an LM as it is, a path or hub id loaded once per target, or, for None, the draft
    that is embedded beside an embedded target. Raises ValueError where the vocabularies differ."""
    if draft is None:
        if target.name != "mini":
            raise ValueError(f"{target.name} has no draft model of its own: name one with draft=PATH")
        draft = "mini-draft"
    key = draft if isinstance(draft, str) else draft.name
    known = target.companions.get(key)
    if known is not None and (isinstance(draft, str) or known is draft):
        return known
    lm = draft if isinstance(draft, LM) else _load(target, draft)
    _check(target, lm)
    target.companions[key] = lm
    return lm


def beside(target: LM, other: str | LM | None) -> LM:
    """Another model that reads texts of `target`, with whatever vocabulary: an LM as it is, a path or hub id loaded
    once per target, or, for None, the target itself."""
    if other is None or isinstance(other, LM):
        return target if other is None else other
    key = f"beside {other}"
    if key not in target.companions:
        target.companions[key] = _load(target, other)
    return target.companions[key]


def fit(logits: Tensor, size: int) -> Tensor:
    """Draft logits (V') as logits over the target's vocabulary (V): padding rows are never drawn."""
    missing = size - logits.shape[-1]
    if missing <= 0:
        return logits[:size]
    return torch.cat([logits, logits.new_full((missing,), float("-inf"))])


def _load(target: LM, path: str) -> LM:
    """By the target's backend and in its precision, so that the draft is as cheap as it can be."""
    from segue.models.load import load

    return load(path, **target.companion_options(path))


def _check(target: LM, draft: LM) -> None:
    if bool(target.start_ids) != bool(draft.start_ids):
        kinds = {True: "an encoder-decoder", False: "a decoder alone"}
        raise ValueError(
            f"{draft.name} cannot draft for {target.name}: it is {kinds[bool(draft.start_ids)]}, and the target is "
            f"{kinds[bool(target.start_ids)]}; a draft model must read and write what its target does"
        )
    if target.tokenizer is not None and draft.tokenizer is not None:
        ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        if differing:
            raise ValueError(
                f"{draft.name} cannot draft for {target.name}: {differing} of {len(ours)} vocabulary entries differ; "
                "a draft model must share the target's tokenizer"
            )
    elif target.vocab_size != draft.vocab_size:
        raise ValueError(
            f"{draft.name} cannot draft for {target.name}: {draft.vocab_size} tokens against {target.vocab_size}; "
            "a draft model must share the target's vocabulary"
        )
