"""Jacobi decoding: greedy decoding is a triangular system of equations, solved by fixed-point iteration.

y_i = argmax p(. | prompt, y_1 .. y_{i-1}) for all i at once. One forward over a guess y^t gives the next, y^{t+1}. A
token depends on the tokens before it only, so each iteration settles at least one more, and the fixed point is the text
that greedy decoding writes.
1. Take the next block of positions: all that are left (jacobi), or b of them (gauss_seidel, hybrid).
2. Guess all its tokens: y^0 is padding, tokens of the prompt, or the last token again.
3. One forward over the last settled token and the guess. Its rows are y^{t+1}.
4. Tokens that equal the row before them are settled, and so is the first that does not, as its row says. Their keys and
   values stay, all others are dropped.
5. Go on at 3 with the rows behind them as the guess, until the block is settled: after at most b iterations.
6. Go on at 1 until the text ends. Hybrid has a number of blocks, and behind them is plain decoding.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.run import Run

MODES = ("hybrid", "gauss_seidel", "jacobi")
GUESSES = ("pad", "random", "last")


@dataclass(slots=True)
class Iterate:
    """State of one run: the block that is being solved. Places count the ids of prompt and output."""

    random: random.Random  # fills guesses; never decides what is emitted
    first: int = 0  # place of the first guess
    guess: list[int] = field(default_factory=list)  # y^t of the block, its last position left out: no row needs it
    end: int = 0  # place behind the block
    blocks: int = 0  # begun so far


@dataclass(frozen=True)
class Jacobi(Speculative):
    """No draft model and no store: the model corrects its own guess. Lookahead makes more of the same iterates."""

    card = Card(
        paper=Paper(
            id="2305.10427",
            title="Accelerating Transformer Inference for Translation via Parallel Decoding",
            year=2023,
        ),
        claim=Claim(value=1.38, unit="speed-up", baseline="greedy", setting="translation, the best of its models"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits",),
        departs="no mode knows the length beforehand, where the released jacobi and gauss_seidel take that of a plain "
        "run: all end with the end of text; settled tokens are kept at once, not one per iteration; reading the prompt "
        "gives the first token; jacobi iterates at most 512 positions at once; the paper is greedy: when sampling, "
        "guesses are still the arg-max, and one stays where the token that is drawn at its place, one draw per place, "
        "is the guess",
        check="spec",
    )

    mode: str = "hybrid"  # hybrid (blocks, then plain decoding), gauss_seidel (blocks), jacobi (one block)
    block: int = 3  # b: positions of a block; 1 is plain decoding
    blocks: int = 100  # blocks that hybrid has
    guess: str = "pad"  # y^0: pad (else end of text, else token 0), random (tokens of the prompt), last (token)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("mode", MODES), ("guess", GUESSES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: one of {', '.join(allowed)}")
        for name in ("block", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def start(self, run: Run) -> Iterate:
        return Iterate(random.Random(run.settings.seed or 0))

    def propose(self, run: Run, state: Iterate, budget: Budget) -> DraftTree:
        if len(run.ids) >= state.end:
            self._begin_block(run, state)
        guess = state.guess[len(run.ids) - state.first :]
        return DraftTree.chain([run.ids[-1], *guess], source="jacobi")

    def observe(self, run: Run, state: Iterate, outcome: Outcome) -> None:
        if not outcome.tree.is_chain:  # somebody else's tree
            return
        # Row j speaks of the token behind node j, and the path's last row has given the last token.
        rows = outcome.scores.argmax()[len(outcome.path) :]
        at = len(run.ids) - state.first
        rows = rows[: max(len(state.guess) - at, 0)]
        state.guess[at : at + len(rows)] = rows

    def _begin_block(self, run: Run, state: Iterate) -> None:
        size = run.remaining if self.mode == "jacobi" else self.block
        if self.mode == "hybrid" and state.blocks >= self.blocks:
            size = 1
        size = min(size, run.remaining)
        state.blocks += 1
        state.first, state.end = len(run.ids), len(run.ids) + size
        state.guess = [self._token(run, state) for _ in range(size - 1)]

    def _token(self, run: Run, state: Iterate) -> int:
        if self.guess == "random":
            return state.random.choice(run.ids[: run.prompt_length])
        if self.guess == "last":
            return run.ids[-1]
        padding = getattr(run.lm.tokenizer, "pad_token_id", None)
        return padding if padding is not None else min(run.lm.eos_ids, default=0)
