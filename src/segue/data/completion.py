"""What a user gets: the answer and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Stats:
    """What one request cost. A forward that several requests shared counts once for each of them."""

    method: str = ""
    tokens: int = 0  # new tokens
    prompt_tokens: int = 0
    target_forwards: int = 0  # passes of the target model, prefill included
    prefill_forwards: int = 0
    rows: int = 0  # tokens that the target read, of prompt, answer, drafts and everything that was given up
    draft_forwards: int = 0  # passes of other models
    drafted: int = 0  # proposed tokens
    accepted: int = 0  # proposed tokens that were kept
    rounds: int = 0  # verification rounds
    offered: list[int] = field(default_factory=list)  # at d: rounds whose draft reached depth d + 1
    kept: list[int] = field(default_factory=list)  # at d: rounds whose accepted path reached depth d + 1
    seconds: float = 0.0  # from admission to the last token
    prefill_seconds: float = 0.0  # in forwards that read the prompt
    drafting_seconds: float = 0.0  # in proposing: code and forwards of drafts
    verifying_seconds: float = 0.0  # in the target's other forwards
    first_token_seconds: float = 0.0
    peak_memory_bytes: int = 0  # of the process (or the GPU) so far
    methods: dict[str, int] = field(default_factory=dict)  # rounds by who drafted, where that changes between rounds
    scorer_calls: int = 0  # texts (or pairs of texts) that were scored by something else than the model
    constraint_checks: int = 0  # single tokens that a constraint was asked about; a mask counts as one
    note: str = ""  # what a method has to say about its choices

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per target forward; a prefill counts as one forward, so plain decoding gives exactly 1."""
        forwards = self.target_forwards - self.prefill_forwards + 1
        return self.tokens / forwards if self.target_forwards else 0.0

    @property
    def other_seconds(self) -> float:
        """What is neither a forward nor drafting: acceptance, bookkeeping, waiting for other requests."""
        return max(0.0, self.seconds - self.prefill_seconds - self.drafting_seconds - self.verifying_seconds)

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    def book_round(self, offered: int, kept: int) -> None:
        """Count a round whose draft was `offered` deep and whose first `kept` levels were accepted."""
        self.rounds += 1
        missing = offered - len(self.offered)
        if missing > 0:
            self.offered += [0] * missing
            self.kept += [0] * missing
        for depth in range(offered):
            self.offered[depth] += 1
            self.kept[depth] += depth < kept

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        data: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["tokens_per_forward"] = round(self.tokens_per_forward, 4)
        data["acceptance"] = None if self.acceptance is None else round(self.acceptance, 4)
        data["tokens_per_second"] = round(self.tokens_per_second, 2)
        data["other_seconds"] = self.other_seconds
        return data


@dataclass(slots=True)
class TokenLogprob:
    """Log-probability of one new token under the model (before sampling settings), with the likeliest others."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class Candidate:
    """One of the answers that a method chose among."""

    text: str
    tokens: list[int]  # new tokens, the end of text included
    logp: float  # log-probability of the tokens under the model, its settings included
    score: float  # what the method ranks by
    finish_reason: FinishReason = "stop"
    logw: float | None = None  # log importance weight, where the method draws weighted samples

    def as_dict(self) -> dict[str, object]:
        data: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.logw is None:
            del data["logw"]
        return data


@dataclass(slots=True)
class Completion:
    """The answer to one prompt."""

    text: str
    tokens: list[int]  # new tokens only
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[TokenLogprob] | None = None
    candidates: list[Candidate] | None = None  # best first, of methods that choose among whole answers
    trace: list[dict[str, Any]] = field(default_factory=list)  # what the method shows of its choices, as JSON

    def as_dict(self) -> dict[str, object]:
        data: dict[str, object] = {
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "stats": self.stats.as_dict(),
        }
        if self.logprobs is not None:
            data["logprobs"] = [{"token": t.token, "logprob": t.logprob, "top": t.top} for t in self.logprobs]
        if self.candidates is not None:
            data["candidates"] = [candidate.as_dict() for candidate in self.candidates]
        if self.trace:
            data["trace"] = self.trace
        return data
