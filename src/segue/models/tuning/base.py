"""Fine-tuning of whole models for methods that need a model of their own: what it learns by, and how it is marked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.lm import LM

SHEET = "segue.json"  # beside a checkpoint's config.json: what it was tuned for
IGNORED = -100  # label of what is not learned


@dataclass(frozen=True)
class Tuning:
    """Base of the objectives: a method's own way to train a model on texts. The network is a transformers model with
    its own attention."""

    kind: ClassVar[str]
    masks: ClassVar[bool] = True  # whether it needs a token to mask with

    mask: int = -1  # token id that stands for what is not known

    def loss(self, network: Any, ids: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        """What is minimised on texts (B, T), of which `there` (B, T) says what is no padding; random choices come from
        `generator`."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What the method must know of the model, and by which numbers it learned."""
        return {"kind": self.kind} | {n: value for n, value in asdict(self).items() if n != "mask" or self.masks}


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) on labels (B, T), those of IGNORED left out; 0 where nothing is left."""
    if not bool((labels != IGNORED).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def following(ids: Tensor, there: Tensor) -> Tensor:
    """(B, T) labels: at every place the token behind it."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = torch.where(there[:, 1:], ids[:, 1:], IGNORED)
    return labels


def mask_token(lm: LM, kind: str, given: int) -> int:
    """The token that masks what a method guesses: the given one, or the one that the model was tuned with. ValueError
    where there is none."""
    token = given if given >= 0 else lm.tuned.get("mask", -1) if lm.tuned.get("kind") == kind else -1
    if token < 0:
        raise ValueError(
            f"{lm.name} was not tuned for {kind}: tune it with segue train {kind} -m MODEL --data TEXTS, or name the "
            "token that it takes for a mask (mask=ID)"
        )
    if token >= lm.vocab_size:
        raise ValueError(f"mask={token} is not in the vocabulary of {lm.name} (0 to {lm.vocab_size - 1})")
    return token


def read_sheet(folder: str) -> dict[str, Any]:
    """What a checkpoint's folder says it was tuned for; empty for an ordinary one. ValueError where it is damaged."""
    path = Path(folder) / SHEET
    if not path.is_file():
        return {}
    try:
        sheet = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): copy the model again or tune it anew") from None
    return sheet
