"""The tree of all legal outputs of a request, scored as far as a search asks for it.

A place is a prefix of the output; its steps are the tokens that the constraint lets follow, and the end where the text
may end. Searches order places as they like: what was read once is kept, and where nothing but one token can follow, the
whole run up to the next choice is read in the same forward.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from segue.choose.parts.hypothesis import Hypothesis, log_p
from segue.choose.parts.pasts import Pasts
from segue.data import Want
from segue.data.completion import TokenLogprob
from segue.models.constraint import Constraint
from segue.models.run import Decoder, Run
from segue.ops.automaton import Minimal

Prefix = tuple[int, ...]
END = -1  # the step that ends the text


class Step(NamedTuple):
    """What may come next."""

    score: float  # its log-probability as the search counts it; of END that of all tokens that end the text
    logp: float  # of `token` under the model, its settings included
    token: int | None  # None: an end that no token marks
    detail: TokenLogprob | None = None  # where the request asks for log-probabilities


class Legal:
    """Places of one run, whose prompt is read by `open`.

    `held`: pasts that are kept beside the prompt's. `labels`: scores are shares among what may follow a place, not the
    model's own probabilities.
    """

    def __init__(self, run: Run, constraint: Constraint, held: int, labels: bool = False) -> None:
        self.run = run
        self.constraint = constraint
        self.labels = labels
        self.places: dict[Prefix, dict[int, Step]] = {}
        self._held = held
        self._pasts = Pasts(run, held)

    def open(self) -> Decoder[None]:
        """Read the prompt: the place of the empty output is known."""
        scores = yield from self.run.prefill()
        self.places[()] = self._steps((), scores.row(-1))

    def read(self, prefixes: list[Prefix]) -> Decoder[None]:
        """Read the places that are not known, as many in one forward as pasts are held, and the runs without a choice
        behind them."""
        unknown = [prefix for prefix in prefixes if prefix not in self.places]
        for at in range(0, len(unknown), self._held):
            some = unknown[at : at + self._held]
            texts = [Hypothesis(list(self._forced(prefix))) for prefix in some]
            scores = yield from self._pasts.read(texts, Want())
            for prefix, text, found in zip(some, texts, scores, strict=True):
                # A past that reached beyond the prefix would have made its place known: the rows from there on are new.
                whole = tuple(text.tokens)
                for length in range(len(prefix), len(whole) + 1):
                    self.places[whole[:length]] = self._steps(whole[:length], found.row(length - len(whole) - 1))

    def steps(self, prefix: Prefix) -> list[int]:
        """The tokens that may follow, without those that end the text."""
        mask = self.constraint.mask(prefix)
        return [token for token in mask.nonzero()[:, 0].tolist() if token not in self.constraint.end_ids]

    def longest(self, prefix: Prefix) -> int:
        """Tokens of the longest output that begins so, or a number that is larger."""
        automaton, state = self.constraint.automaton, self.constraint.state(prefix)
        if not isinstance(automaton, Minimal) or not isinstance(state, int):
            return self.run.max_tokens
        return min(len(prefix) + automaton.longest[state], self.run.max_tokens)

    def hypothesis(self, prefix: Prefix, score: float) -> Hypothesis:
        """A whole output, with the token that ends it where there is room for one."""
        taken = [self.places[prefix[:i]][token] for i, token in enumerate(prefix)]
        end = self.places[prefix][END]
        if end.token is not None and len(prefix) < self.run.max_tokens:
            taken.append(end)
        tokens = [step.token for step in taken if step.token is not None]
        details = [step.detail for step in taken if step.detail is not None]
        return Hypothesis(tokens, [step.logp for step in taken], score, reason="stop", details=details)

    def close(self) -> None:
        """Give up all pasts but the prompt's."""
        self._pasts.release()

    def _steps(self, prefix: Prefix, row: Tensor) -> dict[int, Step]:
        """What may follow a place, from the row of logits (V,) there."""
        logp = log_p(self.run, Hypothesis(list(prefix), row=row))
        whole = float(logp.logsumexp(0)) if self.labels else 0.0
        found = {}
        for token in self.steps(prefix):
            own = float(logp[token])
            found[token] = Step(own - whole, own, token, self._detail(token, row))
        ends = sorted(self.constraint.end_ids)
        if self.constraint.accepts(prefix) and ends:
            best = ends[int(logp[ends].argmax())]
            score = float(logp[ends].logsumexp(0)) - whole
            found[END] = Step(score, float(logp[best]), best, self._detail(best, row))
        elif self.constraint.accepts(prefix):
            found[END] = Step(0.0, 0.0, None)
        return {token: step for token, step in found.items() if step.score > float("-inf")}

    def _detail(self, token: int, row: Tensor) -> TokenLogprob | None:
        return None if self.run.logprobs is None else self.run.detail(token, row)

    def _forced(self, prefix: Prefix) -> Prefix:
        """The prefix and all that must follow it, up to the next choice or end."""
        while len(only := self.steps(prefix)) == 1 and not self.constraint.accepts(prefix):
            prefix = (*prefix, *only)
        return prefix
