"""Answers in the form of OpenAI's API: whole, or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from segue.data import Completion, TokenLogprob
from segue.models.lm import LM
from segue.serve.asked import Asked
from segue.serve.worker import Ended, Piece

LEAST = -9999.0  # what the API writes for a probability of 0


@dataclass
class Answer:
    """One response, whole or in chunks."""

    lm: LM
    model: str  # the name that clients know
    asked: Asked
    chat: bool
    usage: bool = False  # a last chunk tells it
    written: Mapping[int, bytes] = field(default_factory=dict)  # by tokens, where they are known
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    begun: set[int] = field(default_factory=set)  # choices that have text
    offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex

    def whole(self, ended: list[Ended]) -> dict[str, Any]:
        """The response once every choice has ended; of best_of, the likeliest n of each prompt."""
        choices: list[dict[str, Any]] = []
        size = self.asked.best_of
        for start in range(0, len(ended), size):
            group = ended[start : start + size]
            if size > self.asked.n:
                group = sorted(group, key=lambda one: -_mean_logprob(one.completion))[: self.asked.n]
            for one in group:
                number = len(choices)
                text = self._text(number, one.completion.text)
                logprobs = (
                    self._logprobs(number, [*one.prompt, *one.rest.logprobs]) if self.asked.show_logprobs else None
                )
                said: dict[str, Any] = {"text": text}
                if self.chat:
                    said = {"message": {"role": "assistant", "content": text, "refusal": None}}
                choices.append(
                    {"index": number, **said, "logprobs": logprobs, "finish_reason": one.completion.finish_reason}
                )
        kind = "chat.completion" if self.chat else "text_completion"
        return self._frame(kind, choices) | {"usage": usage(ended, size)}

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first text: who speaks, or the prompt where it is echoed."""
        if self.chat:
            return [self._chunk(i, {"delta": {"role": "assistant", "content": ""}}) for i in range(self.asked.n)]
        return [
            self._chunk(i * self.asked.n + j, {"text": text})
            for i, text in enumerate(self.asked.echo)
            for j in range(self.asked.n)
        ]

    def piece(self, piece: Piece, finish: str | None = None) -> list[dict[str, Any]]:
        """The chunk of a piece of text, if it has any or is the last."""
        text = piece.text
        if self.asked.form is not None and piece.choice not in self.begun:
            text = self.asked.form.first(text)
        if text:
            self.begun.add(piece.choice)
        logprobs = None
        if self.asked.show_logprobs and piece.logprobs:
            logprobs = self._logprobs(piece.choice, piece.logprobs)
        if not text and finish is None and logprobs is None:
            return []
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return [self._chunk(piece.choice, said, logprobs, finish)]

    def closing(self, ended: list[Ended]) -> list[dict[str, Any]]:
        """The last chunk, if usage was asked for."""
        if not self.usage:
            return []
        return [self._frame(self._kind, []) | {"usage": usage(ended, self.asked.best_of)}]

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _text(self, number: int, text: str) -> str:
        if self.asked.form is not None:
            return self.asked.form.first(text)
        return self.asked.echo[number // self.asked.n] + text if self.asked.echo else text

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _chunk(
        self, number: int, said: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        chunk = self._frame(self._kind, [{"index": number, **said, "logprobs": logprobs, "finish_reason": finish}])
        return chunk | {"usage": None} if self.usage else chunk

    def _logprobs(self, number: int, details: Iterable[TokenLogprob]) -> dict[str, Any]:
        if self.chat:
            content = [
                self._one(d.token, d.logprob) | {"top_logprobs": [self._one(*other) for other in d.top]}
                for d in details
            ]
            return {"content": content, "refusal": None}
        tokens, offsets = [], []
        at = self.offsets.get(number, 0)
        for detail in details:
            tokens.append(self.lm.decode([detail.token]))
            offsets.append(at)
            at += len(tokens[-1])
        self.offsets[number] = at
        return {
            "tokens": tokens,
            "token_logprobs": [None if isnan(d.logprob) else max(d.logprob, LEAST) for d in details],
            "top_logprobs": [self._top(d) for d in details],
            "text_offset": offsets,
        }

    def _top(self, detail: TokenLogprob) -> dict[str, float] | None:
        """By their texts; of several tokens with one text the likeliest counts."""
        if isnan(detail.logprob):
            return None
        return {self.lm.decode([token]): max(logprob, LEAST) for token, logprob in reversed(detail.top)}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.lm.decode([token])
        data = self.written.get(token, text.encode())  # of half a character the text is only a sign
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(data)}


def usage(ended: list[Ended], per_prompt: int) -> dict[str, Any]:
    """What a request cost. A prompt counts once for all its answers; every drafted token is a predicted one."""
    stats = [one.completion.stats for one in ended]
    prompt = sum(one.prompt_tokens for one in stats[::per_prompt])
    new = sum(one.tokens for one in stats)
    accepted = sum(one.accepted for one in stats)
    drafted = sum(one.drafted for one in stats)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused for one in ended[::per_prompt])},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }


def _mean_logprob(completion: Completion) -> float:
    details = completion.logprobs or []
    return sum(d.logprob for d in details) / max(len(details), 1)
