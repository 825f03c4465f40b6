"""What fewer bits cost: perplexity on held-out text, and how often the likeliest token is still the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segue.data import DraftTree, Want
from segue.models.cost import cache_folder, facts_of
from segue.models.lm import LM

TEXT = Path(__file__).parent / "suites" / "heldout.jsonl"
PIECE = 256  # tokens scored from an empty past
MOST = 2048  # tokens in all


def quality(lm: LM, reference: Callable[[], LM]) -> dict[str, Any]:
    """Compare a form of a model with the model as it is, on the texts that come with the package; remembered, so that
    `reference` is loaded once only."""
    facts = {k: v for k, v in facts_of(lm).items() if k not in ("threads", "spin", "processor")}
    digest = hashlib.sha256(json.dumps([facts, TEXT.read_text()], sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "quality" / f"{digest}.json"
    try:
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    except (OSError, ValueError):
        pass
    texts = [json.loads(line)["text"] for line in TEXT.read_text().splitlines()]
    found = compare(lm, reference(), texts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    except OSError:
        pass  # it is measured again next time
    return found


def compare(lm: LM, reference: LM, texts: list[str]) -> dict[str, Any]:
    """Perplexities of both, and the share of places with the same likeliest token, over the same tokens."""
    ours = theirs = 0.0
    same = count = 0
    for text in texts:
        ids = reference.encode(text)
        for start in range(0, len(ids) - 1, PIECE):
            piece = ids[start : start + PIECE]
            if count >= MOST or len(piece) < 2:
                break
            following = torch.tensor(piece[1:])
            rows = [_rows(m, piece)[:-1] for m in (lm, reference)]
            first, second = (r.log_softmax(-1).gather(1, following[:, None]).sum() for r in rows)
            ours, theirs = ours - float(first), theirs - float(second)
            same += int((rows[0].argmax(-1) == rows[1].argmax(-1)).sum())
            count += len(following)
    found = {
        "perplexity": round(math.exp(ours / count), 3),
        "reference_perplexity": round(math.exp(theirs / count), 3),
        "reference": reference.precision,
        "agreement": round(same / count, 4),
        "tokens": count,
    }
    words = (
        "perplexity {perplexity} on held-out text, {reference_perplexity} in {reference}; the likeliest token is the "
    )
    return found | {"words": (words + "same at {agreement:.1%} of {tokens} places").format(**found)}


def _rows(lm: LM, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) after every token."""
    sequence = lm.sequence()
    try:
        return lm.forward([(sequence, DraftTree.chain(ids), Want())])[0].logits.float().cpu()
    finally:
        sequence.release()
