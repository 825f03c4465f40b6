"""One request while it is decoded: what every method shares, whatever it proposes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from segue.data import Candidate, Completion, DraftTree, FinishReason, Scores, Settings, Stats, TokenLogprob, Want
from segue.models.constraint import constraint
from segue.models.lm import LM
from segue.models.prefixes import Prefixes
from segue.models.sequence import Sequence
from segue.models.text import TextStream
from segue.models.warp import Target
from segue.ops import chance
from segue.ops.chance import Chance

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Forward:
    """Ask for the scores of a tree; its rows stay provisional until the decoder commits."""

    sequence: Sequence
    tree: DraftTree
    want: Want


@dataclass(frozen=True, slots=True)
class Prefill:
    """Ask for tokens to be read and committed, in chunks as the engine sees fit. Gives the scores of the last chunk,
    in which the last row is the last token's, and the hidden states that are wanted of all tokens."""

    sequence: Sequence
    tokens: list[int]
    want: Want


@dataclass(frozen=True, slots=True)
class Gather:
    """Ask for several of these at once, each of a sequence of its own: they share forwards where they can. Gives the
    list of their scores; `gather` asks in a form that type checkers know."""

    requests: list[Forward | Prefill]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start another run beside this one. Gives nothing back."""

    run: Run
    decoder: Decoder[None]


Request = Forward | Prefill | Gather | Spawn
Decoder = Generator[Request, Scores, T]


def gather(requests: list[Forward | Prefill]) -> Decoder[list[Scores]]:
    """Several forwards at once: their scores, in order."""
    return cast("list[Scores]", (yield Gather(requests))) if requests else []


def side_by_side(decoders: list[Decoder[T]]) -> Decoder[list[T]]:
    """Drive several decoders at once, so that they share forwards; what each returns, in order."""
    found: dict[int, T] = {}
    waiting: dict[int, Request] = {}

    def advance(i: int, scores: Any) -> Decoder[None]:
        try:
            request = decoders[i].send(scores)
            while isinstance(request, Spawn):
                yield request
                request = decoders[i].send(cast("Scores", None))
            waiting[i] = request
        except StopIteration as end:
            found[i] = end.value

    for i in range(len(decoders)):
        yield from advance(i, None)
    while waiting:
        asked = dict(sorted(waiting.items()))
        waiting.clear()
        sizes = {i: len(r.requests) if isinstance(r, Gather) else 1 for i, r in asked.items()}
        parts = [r.requests if isinstance(r, Gather) else [r] for r in asked.values()]
        scores = yield from gather([part for group in parts for part in cast("list[Forward | Prefill]", group)])
        for i, request in asked.items():
            mine, scores = scores[: sizes[i]], scores[sizes[i] :]
            yield from advance(i, mine if isinstance(request, Gather) else mine[0])
    return [found[i] for i in range(len(decoders))]


class Run:
    """State of one request. `ids` is the prompt and the output so far; the last id is the pending token.

    Of an encoder-decoder the prompt is `source`, and `ids` starts with what its decoder starts with. `seen` is all text
    so far, source and ids: what a drafter may copy from. Elsewhere it is `ids` itself.
    """

    def __init__(
        self, lm: LM, prompt: list[int], settings: Settings, *, method: str = "", source: Chance | None = None
    ) -> None:
        lm.check_prompt(prompt)
        self.lm = lm
        self.settings = settings
        self.source = list(prompt) if lm.start_ids else []
        self.ids = list(lm.start_ids or prompt)
        self.seen = [*self.source, *self.ids] if self.source else self.ids
        self.firm: int | None = None  # tokens of `seen` that will not be taken back; None: all of them
        self.prompt_length = len(self.ids)
        self.chance: Chance = source if source is not None else chance.Generator(settings.seed)
        self.text = TextStream(lm, self.ids, settings.stop)
        self.max_tokens = min(settings.max_tokens, lm.context_length - self.prompt_length)
        self.constraint = constraint(settings, lm, self.max_tokens)
        self.target = self._target(settings)
        self.sequence = lm.reading(self.source)
        self.first: Scores | None = None  # set where another run has read the prompt for this one
        self.prefixes: Prefixes | None = None  # prompts that other runs have read
        self.reused = 0  # tokens of the prompt that one of them had read
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] | None = None if settings.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob] | None = None  # where they were asked for; NaN for the first token
        self.stats = Stats(method=method, prompt_tokens=len(prompt))
        self.sharing = 1  # runs in the last forward, this one included
        self.width = 1  # sequences that it may hold at a time
        self.halts: Callable[[list[int]], bool] | None = None  # whether an output ends for a further reason
        self.candidates: list[Candidate] | None = None  # of a method that chooses among whole answers, best first
        self.trace: list[dict[str, Any]] = []  # what a method has to show of its choices, as JSON
        self.started = time.perf_counter()
        self._steps: dict[tuple[int, int], float] = {}  # rows and sharing -> seconds

    @property
    def prompt(self) -> list[int]:
        """What the request asks about: the source of an encoder-decoder, else what the output follows."""
        return self.source or self.ids[: self.prompt_length]

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end the text, those of a constraint apart."""
        own = frozenset(self.settings.stop_tokens)
        return own if self.settings.ignore_eos else own | self.lm.eos_ids

    @property
    def output(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_tokens - (len(self.ids) - self.prompt_length)

    @property
    def settled(self) -> int:
        """Tokens of `seen` that a drafter may learn from: all but those that a draft model is only drafting."""
        return len(self.seen) if self.firm is None else self.firm

    def respell(self, ids: list[int], drop: int = 0) -> None:
        """Before anything is given out: go on from another spelling of the prompt. The first `drop` characters of what
        is given out are the prompt's end once more, and no output."""
        if self.source or self.output:
            raise ValueError("only a prompt that nothing follows yet can be spelled anew, and no encoder's")
        self.lm.check_prompt(ids)
        self.ids[:] = ids
        self.prompt_length = len(ids)
        self.text = TextStream(self.lm, self.ids, self.settings.stop, drop)
        self.max_tokens = min(self.settings.max_tokens, self.lm.context_length - self.prompt_length)
        self.target = self._target(self.settings)

    def sampled(self, temperature: float) -> Target:
        """The distribution that the request is sampled from; that of a greedy request at `temperature`."""
        if not self.target.greedy:
            return self.target
        return self._target(replace(self.settings, temperature=temperature))

    def _target(self, settings: Settings) -> Target:
        own = self.lm.constraints(settings, self.source, self.prompt_length + self.max_tokens)
        return Target(settings, self.lm, self.prompt_length, own, self.constraint)

    def step_seconds(self, rows: int) -> float:
        """This run's share of a forward in which everyone who shares it brings that many rows."""
        key = rows, self.sharing
        if key not in self._steps:
            self._steps[key] = self.lm.cost.step(rows * self.sharing) / self.sharing
        return self._steps[key]

    def prefill(self, want: Want | None = None) -> Decoder[Scores]:
        """Read the prompt. The last row of the result is what the first token is picked from."""
        if self.first is None:
            want = replace(want or Want(), logits="last", topk=0)
            alone = want == Want(logits="last")  # nothing else is wanted of tokens that were read before
            prefixes = self.prefixes if alone and not self.source else None
            known = prefixes.match(self.lm, self.ids[: self.prompt_length]) if prefixes is not None else None
            if known is not None:
                self.sequence.adopt(known)
                self.reused = len(known)
            self.first = yield Prefill(self.sequence, self.ids[self.reused : self.prompt_length], want)
            if prefixes is not None:
                prefixes.keep(self.sequence)
        return self.first

    def pick(self, scores: Scores, node: int) -> int:
        """Choose the token after `node` (a row of scores) given everything emitted so far."""
        if self.target.argmax:
            return scores.argmax()[node]
        return self.chance.index(self.target.p(scores.row(node), self.ids))

    def emit(self, tokens: list[int], scores: Scores, nodes: list[int]) -> bool:
        """Give out tokens; token i was chosen from the row of nodes[i]. Cuts at end of text, stop strings and the
        length limit. False when the run is finished."""
        details = None
        if self.logprobs is not None:
            details = [self.detail(token, scores.row(node)) for token, node in zip(tokens, nodes, strict=True)]
        return self.give(tokens, details)

    def give(self, tokens: list[int], details: list[TokenLogprob] | None = None) -> bool:
        """Give out tokens that were chosen elsewhere, with their log-probabilities where those are asked for; as
        `emit`."""
        if not self.stats.tokens and tokens:
            self.stats.first_token_seconds = time.perf_counter() - self.started
        for place, token in enumerate(tokens):
            self.ids.append(token)
            if self.source:
                self.seen.append(token)
            self.stats.tokens += 1
            if self.logprobs is not None and details is not None:
                self.logprobs.append(details[place])
            over = self.constraint is not None and self.constraint.take(tuple(self.output), self.remaining <= 0)
            if self._ends(token) or over or (self.halts is not None and self.halts(self.output)):
                self.finish("stop")
            elif self.remaining <= 0:
                self.finish("length")
            if self.finish_reason is not None:
                return False
        return True

    def conclude(self, best_first: list[Candidate], details: list[TokenLogprob] | None = None) -> None:
        """Give out the first of the answers that a method chose among, and keep all of them. `details` as in `give`."""
        self.candidates = best_first
        self.give(best_first[0].tokens, details)
        if self.finish_reason is None:
            self.finish(best_first[0].finish_reason)

    def _ends(self, token: int) -> bool:
        return self.text.push(token) or self.is_end(token)

    def is_end(self, token: int) -> bool:
        """Whether a token ends the text."""
        if self.constraint is not None and token in self.constraint.end_ids:
            return True
        return token in self.settings.stop_tokens or (token in self.lm.eos_ids and not self.settings.ignore_eos)

    def finish(self, reason: FinishReason) -> None:
        """Nothing more is given out."""
        self.finish_reason = reason
        if self.constraint is not None:
            self.stats.constraint_checks += self.constraint.checks
        self.stats.seconds = time.perf_counter() - self.started
        self.stats.peak_memory_bytes = peak_memory()

    def detail(self, token: int, row: torch.Tensor) -> TokenLogprob:
        """What `logprobs` asks for of a token that follows a row of logits (V,)."""
        logp = torch.log_softmax(row.float(), -1)
        count = min(self.settings.logprobs or 0, logp.shape[0])
        values, ids = logp.topk(count)
        return TokenLogprob(token, float(logp[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))

    def completion(self) -> Completion:
        """The answer, once finished."""
        assert self.finish_reason is not None
        self.text.close()
        return Completion(
            self.text.text, self.output, self.finish_reason, self.stats, self.logprobs, self.candidates, self.trace
        )


def peak_memory() -> int:
    """Peak bytes of the GPU, or of this process, so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
