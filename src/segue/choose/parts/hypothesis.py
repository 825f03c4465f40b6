"""A text in the making among others: its tokens, what they are worth, and the past that it shares with its siblings.

Drivers make children of hypotheses, which costs nothing; `advance` then reads their last tokens, all in one forward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from segue.data import Candidate, ConstraintError, DraftTree, FinishReason, TokenLogprob, Want
from segue.models.run import Decoder, Forward, Run, gather
from segue.models.sequence import Sequence
from segue.models.text import TextStream


@dataclass(eq=False, slots=True)
class Hypothesis:
    """Part of a search: an output so far. `score` is what its driver ranks by, `logw` a log importance weight; they and
    the log-probability are kept apart. `state` belongs to the method (a constraint's state, a group, features)."""

    tokens: list[int] = field(default_factory=list)  # of the output
    logps: list[float] = field(default_factory=list)  # of each token under the model, its settings included
    score: float = 0.0
    logw: float = 0.0
    state: Any = None
    parent: Hypothesis | None = None  # until its last token is read
    reason: FinishReason | None = None  # set once it is finished
    sequence: Sequence | None = None  # its past; None where its last token is not read, or nobody needs it any more
    row: Tensor | None = None  # (V,) raw logits after its last token
    hidden: dict[int, Tensor] = field(default_factory=dict)  # of its last token, as wanted: state -> (D,)
    details: list[TokenLogprob] = field(default_factory=list)  # where the request asks for log-probabilities

    @property
    def logp(self) -> float:
        return sum(self.logps)

    def child(self, run: Run, token: int, logp: float, *, score: float | None = None, state: Any = None) -> Hypothesis:
        """This text and one more token, whose log-probability is `logp`; its score is the parent's plus that unless
        given, its state the parent's unless given. `reason` says whether it ends the text."""
        new = Hypothesis(
            [*self.tokens, token],
            [*self.logps, logp],
            self.score + logp if score is None else score,
            self.logw,
            self.state if state is None else state,
            parent=self,
        )
        if run.logprobs is not None:
            assert self.row is not None, "a child is made from its parent's row"
            new.details = [*self.details, run.detail(token, self.row)]
        new.reason = why_over(run, new.tokens)
        return new

    def fork(self) -> Hypothesis:
        """The same text once more, over a fork of its past, so that one of the two can go on and the other be kept."""
        past = None if self.sequence is None else self.sequence.fork()
        return replace(self, sequence=past)

    def release(self) -> None:
        """Give up the past."""
        if self.sequence is not None:
            self.sequence.release()
            self.sequence = None


def first(run: Run, want: Want | None = None) -> Decoder[Hypothesis]:
    """Read the prompt: the empty output, with the row that its first token is chosen from."""
    scores = yield from run.prefill(want)
    hidden = {state: rows[-1] for state, rows in scores.hidden.items()}
    return Hypothesis(sequence=run.sequence, row=scores.row(-1), hidden=hidden)


def advance(run: Run, children: list[Hypothesis], want: Want | None = None) -> Decoder[None]:
    """Read the last tokens of unfinished children in one forward. Each takes over its parent's past, or a fork of it
    where siblings need it as well; parents that are left with one are still to be released."""
    needed = Counter(id(child.parent) for child in children)
    for child in children:
        parent = child.parent
        if parent is None or parent.sequence is None:
            raise ValueError(f"the past of {child.tokens[:-1]} is gone: advance all children of a parent together")
        needed[id(parent)] -= 1
        if needed[id(parent)]:
            child.sequence = parent.sequence.fork()
        else:
            child.sequence, parent.sequence = parent.sequence, None
    asked = [_read(child, want or Want()) for child in children]
    for child, scores in zip(children, (yield from gather(list(asked))), strict=True):
        assert child.sequence is not None
        child.sequence.commit([0])
        child.row, child.parent = scores.row(0), None
        child.hidden = {state: rows[0] for state, rows in scores.hidden.items()}


def _read(child: Hypothesis, want: Want) -> Forward:
    assert child.sequence is not None
    return Forward(child.sequence, DraftTree.root(child.tokens[-1]), want)


def log_p(run: Run, hypothesis: Hypothesis) -> Tensor:
    """(V,) log-probabilities of the next token. Penalties and constraints act on them without a renormalisation, as in
    transformers' beam search; -inf is what may not come (everything, where a constraint has led to a dead end)."""
    assert hypothesis.row is not None
    constraint = run.constraint
    if constraint is not None and not bool(constraint.mask(tuple(hypothesis.tokens)).any()):
        return torch.full_like(hypothesis.row, float("-inf"), dtype=torch.float32)
    scores = run.target.processed(hypothesis.row.float().log_softmax(-1), [*prompt_of(run), *hypothesis.tokens])
    if constraint is not None and constraint.stuck(tuple(hypothesis.tokens)):
        scores.fill_(float("-inf"))  # what the constraint allows, other settings forbid
    return scores


def prompt_of(run: Run) -> list[int]:
    """What the output follows."""
    return run.ids[: run.prompt_length]


def why_over(run: Run, tokens: list[int]) -> FinishReason | None:
    """Why an output ends with its last token, if it does."""
    constraint = run.constraint
    complete = constraint is not None and constraint.complete(tuple(tokens))
    halted = run.halts is not None and run.halts(tokens)
    if run.is_end(tokens[-1]) or complete or halted or stopped(run, tokens):
        return "stop"
    return "length" if len(tokens) >= run.max_tokens else None


def satisfied(run: Run, hypothesis: Hypothesis) -> bool:
    """Whether a finished hypothesis is what the request's constraint asks for; one that is not has no worth at all."""
    return run.constraint is None or run.constraint.accepts(tuple(hypothesis.tokens))


def stopped(run: Run, tokens: list[int]) -> bool:
    """Whether a stop string has come to stand at the end."""
    stops = run.settings.stop
    if not stops:
        return False
    # A token may be as little as one byte of a character.
    longest = max(len(stop.encode()) for stop in stops)
    before = run.ids[max(0, run.prompt_length - 1) : run.prompt_length]
    text = run.lm.decode([*before, *tokens][-longest - 1 :])
    return any(stop in text for stop in stops)


def text_of(run: Run, tokens: list[int]) -> str:
    """The text of an output, cut at a stop string."""
    stream = TextStream(run.lm, prompt_of(run), run.settings.stop)
    for token in tokens:
        if stream.push(token):
            break
    stream.close()
    return stream.text


def prompt_words(run: Run) -> str:
    """The prompt as scorers read it: its text, or its token ids where the model has no tokenizer."""
    prompt = run.prompt
    return run.lm.decode(prompt) if run.lm.tokenizer is not None else " ".join(map(str, prompt))


def words_of(run: Run, tokens: list[int]) -> str:
    """An output, or a part of one, as scorers read it."""
    return text_of(run, tokens) if run.lm.tokenizer is not None else " ".join(map(str, tokens))


def deliver(run: Run, ranked: list[Hypothesis]) -> None:
    """Give out the first of the hypotheses, and all of them as candidates; their pasts are released. Raises
    ConstraintError where there is none: everything that was tried led to a dead end."""
    if not ranked:
        name = run.constraint.name if run.constraint is not None else "the request's settings"
        raise ConstraintError(
            f"no text that satisfies {name} was found within max_tokens={run.max_tokens}: raise it, or let the method "
            "try more (a wider beam, more particles)"
        )
    for hypothesis in ranked:
        hypothesis.release()
    candidates = [
        Candidate(text_of(run, h.tokens), h.tokens, h.logp, h.score, h.reason or "length", h.logw) for h in ranked
    ]
    run.conclude(candidates, ranked[0].details)
