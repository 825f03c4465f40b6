"""Held-out perplexity and bits per byte, and how well a draft agrees with its target, source by source."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from segue.train.batches import read_tokens

LENGTH = 1024  # context given to the model


@torch.inference_mode()
def heldout(model: Any, folder: Path, names: Iterable[str], *, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Perplexity per token, bits per byte and token count for each source; `limit` caps the tokens read.

    The stream is read in windows that do not overlap, so the first tokens of a window see little context.
    End-of-text tokens are predicted too but count as no bytes.
    """
    sizes = json.loads((folder / "index.json").read_text())
    result = {}
    for name in names:
        count, nats = 0, 0.0
        for window in _windows(folder, name, limit):
            nats += F.cross_entropy(_logits(model, window), window[0, 1:], reduction="sum").item()
            count += window.shape[1] - 1
        read_bytes = sizes[name]["heldout_bytes"] * count / (sizes[name]["heldout"] - 1)
        result[name] = {
            "perplexity": round(math.exp(nats / count), 3),
            "bits_per_byte": round(nats / math.log(2) / read_bytes, 4),
            "tokens": count,
        }
    return result


@torch.inference_mode()
def agreement(
    target: Any, draft: Any, folder: Path, names: Iterable[str], *, limit: int
) -> dict[str, dict[str, float]]:
    """How far `draft` may stand in for `target` on each source.

    `overlap` is the mean over positions of sum(min(p, q)), the chance that a sampled draft token is accepted;
    `greedy` is the share of positions where both have the same most likely token.
    """
    result = {}
    for name in names:
        overlap = same = 0.0
        count = 0
        for window in _windows(folder, name, limit):
            p, q = (_logits(model, window).softmax(-1) for model in (target, draft))  # (T, V)
            overlap += torch.minimum(p, q).sum().item()
            same += (p.argmax(-1) == q.argmax(-1)).sum().item()
            count += len(p)
        result[name] = {"overlap": round(overlap / count, 4), "greedy": round(same / count, 4), "tokens": count}
    return result


def _windows(folder: Path, name: str, limit: int | None) -> Iterator[torch.Tensor]:
    tokens = torch.from_numpy(read_tokens(folder, name, "heldout").astype("int64"))
    tokens = tokens[: limit + 1] if limit else tokens
    for start in range(0, len(tokens) - 1, LENGTH):
        yield tokens[start : start + LENGTH + 1].unsqueeze(0)  # (1, T + 1)


def _logits(model: Any, window: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits: torch.Tensor = model(input_ids=window[:, :-1], use_cache=False).logits[0]  # (T, V)
    return logits.float()
