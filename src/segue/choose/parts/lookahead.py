"""The driver with one step of look-ahead: the likeliest next tokens are all read before one of them is chosen.

What the model makes of each, its last hidden state, then counts beside how likely it is. The candidates are read in one
forward, as nodes at one position none of which sees another; one of them is kept with its row of the cache, the others
are dropped. The row that the next candidates come from is then known as well, so that a token costs one forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.data import CapabilityError, DraftTree, Want
from segue.models.job import TREE_ROWS
from segue.models.run import Decoder, Forward, Run

LAST = Want(hidden=(-1,))  # what a method that looks ahead wants of the prompt, too
NEEDS = ("logits", "hidden states", "tree attention")


@dataclass(frozen=True, slots=True)
class Step:
    """What is known where a token is chosen. Hidden states are those of the last layer, behind the norm, in float32 at
    least; an encoder-decoder's are the decoder's."""

    run: Run
    tokens: list[int]  # the m candidates, the likeliest first; none that the request forbids
    p: Tensor  # (m,) their probabilities, the request's settings included
    ahead: Tensor  # (m, D) hidden states of the candidates
    past: Tensor  # (T, D) hidden states of all text so far, prompt included: row i is that of run.ids[i]
    norms: Tensor  # (T,) their lengths

    def cosines(self, rows: slice = slice(None)) -> Tensor:
        """(m, T) cosine of every candidate with every token so far, or with those of `rows` only."""
        own = self.ahead / self.ahead.norm(dim=-1, keepdim=True)
        found: Tensor = own @ self.past[rows].T / self.norms[rows]
        return found


class Past:
    """The hidden states of a text that grows up to `room` tokens."""

    def __init__(self, states: Tensor, room: int) -> None:
        """`states` (T, D) are those of the prompt."""
        dtype = torch.promote_types(states.dtype, torch.float32)
        self._states = torch.empty(room, states.shape[1], dtype=dtype, device=states.device)
        self._norms = torch.empty(room, dtype=dtype, device=states.device)
        self._length = 0
        self.add(states)

    def add(self, states: Tensor) -> None:
        """Append the hidden states (n, D) of the next tokens."""
        rows = slice(self._length, self._length + len(states))
        self._states[rows] = states
        self._norms[rows] = self._states[rows].norm(dim=-1)
        self._length = rows.stop

    @property
    def states(self) -> Tensor:
        return self._states[: self._length]

    @property
    def norms(self) -> Tensor:
        return self._norms[: self._length]


def check_width(name: str, width: int) -> None:
    """ValueError where so many candidates cannot be read at a step."""
    if not 1 <= width <= TREE_ROWS:
        raise ValueError(f"{name}={width} is not allowed: from 1 (greedy) to {TREE_ROWS} candidates at a step")


def look_ahead(run: Run, method: str, width: int, choose: Callable[[Step], int]) -> Decoder[None]:
    """Decode to the end: at every step the `width` likeliest tokens are read, and `choose` gives the place of the one
    that is kept. Raises CapabilityError, in the name of `method`, where the model gives no hidden states."""
    refusal = run.lm.refusal(method, NEEDS)
    if refusal:
        raise CapabilityError(refusal)
    scores = yield from run.prefill(LAST)
    node = -1
    past = Past(scores.hidden[-1], len(run.ids) + run.remaining)
    while True:
        tokens, p = _likeliest(run, scores.row(node), width)
        ahead = yield Forward(run.sequence, DraftTree.alternatives(tokens), LAST)
        states = ahead.hidden[-1].to(past.states.dtype)
        chosen = choose(Step(run, tokens, p, states, past.states, past.norms))
        run.sequence.commit([chosen])
        if not run.emit([tokens[chosen]], scores, [node]):
            return
        past.add(states[chosen : chosen + 1])
        scores, node = ahead, chosen


def _likeliest(run: Run, row: Tensor, width: int) -> tuple[list[int], Tensor]:
    """The likeliest tokens after a row of logits (V,) and their probabilities, as the request's settings leave them."""
    logits = run.target.processed(row, run.ids)
    values, tokens = logits.topk(min(width, logits.shape[0]))
    allowed = int((values > float("-inf")).sum())
    if not allowed:
        raise ValueError("the request's settings forbid every token here: relax min_tokens, bad_words or logit_bias")
    p = logits.softmax(-1)[tokens[:allowed]]
    return tokens[:allowed].tolist(), p
