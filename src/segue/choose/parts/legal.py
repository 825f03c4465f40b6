"""The tree of all legal outputs of a request, scored as far as a search asks for it.

A place is a prefix of the output; its steps are the tokens that the constraint lets follow, and the end where the text
may end. Searches order places as they like: what was read once is kept, and where nothing but one token can follow, the
whole run up to the next choice is read in the same forward.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor

from segue.choose.parts.hypothesis import Hypothesis, log_p
from segue.data import DraftTree, Want
from segue.data.completion import TokenLogprob
from segue.models.constraint import Constraint
from segue.models.run import Decoder, Forward, Run, gather
from segue.models.sequence import Sequence

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

    `held`: pasts that are kept beside the prompt's; a place behind one that was given up is read again from the nearest
    one that is left. `labels`: scores are shares among what may follow a place, not the model's own probabilities.
    """

    def __init__(self, run: Run, constraint: Constraint, held: int, labels: bool = False) -> None:
        self.run = run
        self.constraint = constraint
        self.held = held
        self.labels = labels
        self.places: dict[Prefix, dict[int, Step]] = {}
        self._root: Sequence | None = None
        self._pasts: OrderedDict[Prefix, Sequence] = OrderedDict()

    def open(self) -> Decoder[None]:
        """Read the prompt: the place of the empty output is known."""
        scores = yield from self.run.prefill()
        self._root = self.run.sequence
        self.places[()] = self._steps((), scores.row(-1))

    def read(self, prefixes: list[Prefix]) -> Decoder[None]:
        """Read the places that are not known, all in one forward, and the runs without a choice behind them."""
        asked: list[tuple[Prefix, Prefix, Sequence]] = []
        for prefix in prefixes:
            if prefix not in self.places:
                near = self._nearest(prefix)
                whole = self._forced(prefix)
                before = self._pasts.get(near) or self._root
                assert before is not None, "the prompt is read first"
                asked.append((near, whole, before.fork()))
        requests = [Forward(past, DraftTree.chain(whole[len(near) :]), Want()) for near, whole, past in asked]
        for (near, whole, past), scores in zip(asked, (yield from gather(list(requests))), strict=True):
            past.commit(list(range(len(whole) - len(near))))
            for length in range(len(near) + 1, len(whole) + 1):
                if whole[:length] not in self.places:
                    self.places[whole[:length]] = self._steps(whole[:length], scores.row(length - len(near) - 1))
            self._keep(whole, past)

    def steps(self, prefix: Prefix) -> list[int]:
        """The tokens that may follow, without those that end the text."""
        mask = self.constraint.mask(prefix)
        return [token for token in mask.nonzero()[:, 0].tolist() if token not in self.constraint.end_ids]

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
        for past in self._pasts.values():
            past.release()
        self._pasts.clear()

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

    def _nearest(self, prefix: Prefix) -> Prefix:
        """The longest beginning whose past is at hand."""
        return next((prefix[:n] for n in range(len(prefix) - 1, 0, -1) if prefix[:n] in self._pasts), ())

    def _keep(self, prefix: Prefix, past: Sequence) -> None:
        if not self.steps(prefix):  # nothing but an end follows
            past.release()
            return
        self._pasts[prefix] = past
        while len(self._pasts) > self.held:
            self._pasts.popitem(last=False)[1].release()
