"""A target's greedy answers, kept so that any draft model can be judged without the target.

Under greedy decoding a draft is accepted exactly as far as the draft model's own greedy continuation is the target's
text. As long as it agrees, the text it has read *is* the target's text: so the draft reads each text once, and at every
place it is noted whether its next token is the text's. From these hits follow the rounds of draft-and-verify for any
number of drafted tokens, one by one. (The authors of Decoding Speculative Decoding, 2402.01528, replay a stored log of
a 65B model's outputs in the same way.)

The file is JSONL: a head, then one answer a line. A recording that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segue.api import Model
from segue.data import DraftTree, Want
from segue.models.cost import Cost
from segue.models.lm import LM

FORMAT = 1
CHUNK = 64  # rows that the draft reads at a time where logits are needed
ONWARD = "record it again, or cut the file before that line and continue the recording"


@dataclass(frozen=True)
class Answer:
    """One prompt and what the target made of it, in token ids."""

    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Round:
    """One round of draft and verify: so many tokens drafted, so many of them accepted."""

    offered: int
    kept: int


@dataclass(frozen=True)
class Trace:
    """What is known of a target when it is not there."""

    model: str
    precision: str
    vocab_size: int
    entries: int  # ids below this are the tokenizer's; 0 where the target has none
    vocabulary: str  # digest of the tokenizer's entries
    context_length: int
    max_tokens: int
    prompts: int  # that were to be answered
    digest: str  # of the prompts
    cost: Cost
    answers: list[Answer] = field(default_factory=list)

    def head(self) -> dict[str, Any]:
        """The first line of the file."""
        curve = {name: getattr(self.cost, name) for name in ("rows", "seconds", "overhead", "threads")}
        return {"segue_trace": FORMAT, **self.identity(), "cost": curve}

    def identity(self) -> dict[str, Any]:
        """What must be the same for a recording to be continued."""
        names = ("model", "precision", "vocab_size", "entries", "vocabulary", "context_length", "max_tokens", "prompts")
        return {name: getattr(self, name) for name in (*names, "digest")}

    def room(self, answer: Answer) -> int:
        """Tokens that the target was allowed for an answer."""
        return min(self.max_tokens, self.context_length - len(answer.prompt))

    def check_draft(self, draft: LM) -> None:
        """ValueError where a draft model does not have the target's vocabulary."""
        why = ""
        if draft.tokenizer is not None and self.entries:
            if fingerprint(draft, self.entries)[1] != self.vocabulary:
                why = "their tokenizers have different entries"
        elif draft.vocab_size != self.vocab_size:
            why = f"{draft.vocab_size} tokens against {self.vocab_size}"
        if why:
            raise ValueError(
                f"{draft.name} cannot draft for {self.model}: {why}; a draft model must share the target's vocabulary"
            )


def fingerprint(lm: LM, entries: int | None = None) -> tuple[int, str]:
    """How many ids a model's tokenizer names, and a digest of those entries; of the first `entries` ids only, where
    given: a draft may know more tokens than its target."""
    if lm.tokenizer is None:
        return 0, ""
    pairs = sorted((number, token) for token, number in lm.tokenizer.get_vocab().items())
    size = (pairs[-1][0] + 1 if pairs else 0) if entries is None else entries
    return size, hashlib.sha256(json.dumps([p for p in pairs if p[0] < size]).encode()).hexdigest()[:24]


def record(
    model: Model,
    prompts: list[list[int]],
    max_tokens: int,
    *,
    path: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Let the target answer the prompts greedily. With `path` every answer is on disk as soon as it is there; what an
    earlier recording of the same prompts has written is taken over (ValueError where the file is of another one)."""
    lm = model.lm
    trace = Trace(
        lm.name,
        lm.precision,
        lm.vocab_size,
        *fingerprint(lm),
        lm.context_length,
        max_tokens,
        len(prompts),
        hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:24],
        lm.cost,
    )
    if path is not None:
        trace = _continue(trace, path, prompts)
    for number in range(len(trace.answers), len(prompts)):
        progress(number, len(prompts))
        answer = Answer(prompts[number], model.generate(prompts[number], "plain", max_tokens=max_tokens).tokens)
        trace.answers.append(answer)
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps({"prompt": answer.prompt, "tokens": answer.tokens}) + "\n")
    progress(len(prompts), len(prompts))
    return trace


def _continue(trace: Trace, path: Path, prompts: list[list[int]]) -> Trace:
    """The trace with the answers that are in the file already; a torn last line is cut off."""
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        if data and not b'{"segue_trace"'.startswith(data[:14]):
            raise ValueError(f"{path} is no trace of segue draft-study: remove it or name another file")
        path.write_text(json.dumps(trace.head()) + "\n")
        return trace
    known = _parse(path, whole)
    if known.identity() != trace.identity():
        other = [f"{k} {v!r}" for k, v in known.identity().items() if v != trace.identity()[k]]
        raise ValueError(f"{path} is of another recording ({', '.join(other)}): remove it or name another file")
    strange = next((n for n, a in enumerate(known.answers) if n >= len(prompts) or a.prompt != prompts[n]), None)
    if strange is not None:
        raise ValueError(f"{path} line {strange + 2} answers another prompt than this recording's: {ONWARD}")
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return replace(known, cost=trace.cost)


def read(path: Path) -> Trace:
    """The trace in a file; ValueError names the line that is wrong."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        number = data.count(b"\n") + 1
        raise ValueError(f"{path} line {number} is cut off: continue the recording with --record {path}")
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> Trace:
    lines = data.split(b"\n")[:-1]
    try:
        head = json.loads(lines[0])
        if head.pop("segue_trace") != FORMAT:
            raise ValueError("another format")
        curve = head.pop("cost")
        seconds = tuple(map(float, curve["seconds"]))
        cost = Cost(tuple(map(int, curve["rows"])), seconds, float(curve["overhead"]), tuple(curve["threads"]))
        trace = Trace(**head, cost=cost)
        if len(cost.rows) != len(seconds) or not seconds or min(seconds) <= 0 or cost.rows[0] != 1:
            raise ValueError("no cost curve")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} line 1 is not the head of a trace of segue draft-study: record one first") from None
    for number, line in enumerate(lines[1:], start=2):
        trace.answers.append(_answer(trace, path, number, line))
    return trace


def _answer(trace: Trace, path: Path, number: int, line: bytes) -> Answer:
    try:
        record = json.loads(line)
        answer = Answer(list(record["prompt"]), list(record["tokens"]))
        ids = [*answer.prompt, *answer.tokens]
        sound = bool(answer.prompt) and all(type(i) is int and 0 <= i < trace.vocab_size for i in ids)
        sound = sound and 0 < len(answer.tokens) <= trace.room(answer)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} line {number} is not an answer of {trace.model}: {ONWARD}")
    return answer


def hits(draft: LM, answer: Answer, vocab_size: int) -> list[bool]:
    """For every token of an answer, whether the draft, having read all before it, finds it the most likely one.

    The first is False: it comes of reading the prompt and is never drafted. So are those beyond the draft's context.
    """
    ids = [*answer.prompt, *answer.tokens]
    start = len(answer.prompt)
    end = min(len(ids) - 1, draft.context_length - 1)  # tokens that are read; the last one's successor is past the end
    found = [False] * len(answer.tokens)
    sequence = draft.sequence()
    try:
        for at, stop in _chunks(start, end):
            scored = at >= start
            want = Want() if scored else Want(logits="none")
            (scores,) = draft.forward([(sequence, DraftTree.chain(ids[at:stop]), want)])
            sequence.commit(list(range(stop - at)))
            if scored:
                # A draft may have more rows than the target has tokens: they are never drafted.
                best = scores.logits[:, :vocab_size].argmax(-1).tolist()
                for place, token in zip(range(at, stop), best, strict=True):
                    found[place + 1 - start] = token == ids[place + 1]
    finally:
        sequence.release()
    return found


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The prompt, of which no row is needed, apart from the answer."""
    if end <= start:
        return
    for low, high in ((0, start), (start, end)):
        for at in range(low, high, CHUNK):
            yield at, min(at + CHUNK, high)


def rounds(trace: Trace, answer: Answer, hit: list[bool], gamma: int, context_length: int) -> list[Round]:
    """The rounds in which `DraftModel(gamma=gamma)` writes this answer, for a draft of that context length."""
    found = []
    at, last = 0, len(answer.tokens) - 1  # of the pending token, and of the answer's end
    while at < last:
        remaining = trace.room(answer) - (at + 1)
        offered = max(0, min(gamma, remaining - 1, context_length - (len(answer.prompt) + at + 1)))
        kept = 0
        while kept < min(offered, last - at) and hit[at + kept + 1]:
            kept += 1
        found.append(Round(offered, kept))
        at += kept + 1
    return found
