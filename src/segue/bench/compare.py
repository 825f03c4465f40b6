"""Methods and transformers take turns on the same prompts, and ratios are taken within a round.

Machines are noisy: a time means little, a ratio of neighbouring runs more, a count of forwards everything. Looping
outputs (distinct-trigram ratio under 0.6) are counted apart, since loops flatter every drafter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from segue.api import Model
from segue.data import Completion

PEER = "transformers"
LOOPING = 0.6
Progress = Callable[[str], None]


@dataclass
class Row:
    """What one contestant did, per round and per prompt."""

    name: str
    seconds: list[list[float]] = field(default_factory=list)  # [round][prompt]
    tokens: list[list[int]] = field(default_factory=list)  # per prompt, of the last round
    completions: list[Completion] = field(default_factory=list)  # of the last round; none for the peer

    def rate(self) -> float:
        """Median over rounds of tokens per second over all prompts."""
        count = sum(len(t) for t in self.tokens)
        return statistics.median(count / sum(r) for r in self.seconds)

    def ratio_to(self, other: Row, prompts: list[int] | None = None) -> tuple[float, float, float]:
        """Speed-up over `other` (median, least, most over the rounds), on some prompts or all."""
        chosen = range(len(self.tokens)) if prompts is None else prompts
        ours = [sum(r[i] for i in chosen) / sum(len(self.tokens[i]) for i in chosen) for r in self.seconds]
        theirs = [sum(r[i] for i in chosen) / sum(len(other.tokens[i]) for i in chosen) for r in other.seconds]
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        return statistics.median(ratios), ratios[0], ratios[-1]


def compare(
    model: Model,
    source: str,
    methods: list[Any],
    names: list[str],
    prompts: list[list[int]],
    *,
    max_tokens: int,
    rounds: int,
    progress: Progress = lambda text: None,
) -> list[Row]:
    """Run every method and transformers' greedy generate alternately. Stores of drafters are emptied before each of
    a method's rounds, so that a round is a first sight of the prompts. The first row is the peer."""
    network = AutoModelForCausalLM.from_pretrained(source, dtype=model.lm.dtype).eval()  # type: ignore[attr-defined]
    rows = [Row(PEER), *(Row(name) for name in names)]
    for _ in range(2):  # warm-up
        _peer(network, prompts[0], 8)
        for method in methods:
            model.generate(prompts[0], method, max_tokens=8)
    for turn in range(rounds):
        for row in rows:
            row.seconds.append([])
            row.tokens, row.completions = [], []
        model.reset()
        for number, prompt in enumerate(prompts):
            progress(f"round {turn + 1} of {rounds}, prompt {number + 1} of {len(prompts)}")
            for row, method in zip(rows, [None, *methods], strict=True):
                begin = time.perf_counter()
                out = None if method is None else model.generate(prompt, method, max_tokens=max_tokens)
                tokens = _peer(network, prompt, max_tokens) if out is None else out.tokens
                row.seconds[-1].append(time.perf_counter() - begin)
                row.tokens.append(tokens)
                if out is not None:
                    row.completions.append(out)
    return rows


def looping(tokens: list[int]) -> bool:
    """Whether an output mostly repeats itself."""
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return bool(trigrams) and len(set(trigrams)) / len(trigrams) < LOOPING


def summary(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """One record for each contestant, ready for a table or JSON."""
    peer = rows[0]
    straight = [i for i, t in enumerate(peer.tokens) if not looping(t)]
    for row in rows:
        stats = [c.stats for c in row.completions]
        drafted = sum(s.drafted for s in stats)
        forwards = sum(s.target_forwards - s.prefill_forwards + 1 for s in stats)
        record: dict[str, Any] = {
            "name": row.name,
            "tokens_per_second": round(row.rate(), 1),
            "ratio": [round(x, 3) for x in row.ratio_to(peer)],
            "ratio_not_looping": [round(x, 3) for x in row.ratio_to(peer, straight)] if straight else None,
            "equal": sum(a == b for a, b in zip(row.tokens, peer.tokens, strict=True)),
            "prompts": len(peer.tokens),
            "looping": len(peer.tokens) - len(straight),
        }
        if stats:
            own = [stats[i] for i in straight]
            record["tokens_per_forward"] = round(sum(s.tokens for s in stats) / forwards, 3)
            record["tokens_per_forward_not_looping"] = (
                round(sum(s.tokens for s in own) / sum(s.target_forwards - s.prefill_forwards + 1 for s in own), 3)
                if own
                else None
            )
            record["acceptance"] = round(sum(s.accepted for s in stats) / drafted, 3) if drafted else None
            record["target_forwards"] = sum(s.target_forwards for s in stats)
            record["draft_forwards"] = sum(s.draft_forwards for s in stats)
            record["tokens"] = sum(s.tokens for s in stats)
        yield record


def batched(model: Model, prompts: list[list[int]], *, max_tokens: int, rounds: int) -> dict[str, Any]:
    """All prompts in one engine against one by one, plain decoding, alternated."""
    together, alone = [], []
    same = True
    for _ in range(rounds):
        begin = time.perf_counter()
        many = model.generate(prompts, "plain", max_tokens=max_tokens)
        together.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        single = [model.generate(p, "plain", max_tokens=max_tokens) for p in prompts]
        alone.append(time.perf_counter() - begin)
        same = same and [c.tokens for c in many] == [c.tokens for c in single]
    ratios = sorted(a / b for a, b in zip(alone, together, strict=True))
    return {
        "name": "batched plain against one by one",
        "prompts": len(prompts),
        "max_tokens": max_tokens,
        "ratio": [round(x, 3) for x in (statistics.median(ratios), ratios[0], ratios[-1])],
        "same_tokens": same,
    }


@torch.no_grad()
def _peer(network: Any, prompt: list[int], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=network.config.eos_token_id or 0,
    )
    return [int(t) for t in out[0, len(prompt) :]]
