"""A trigram of the newest tokens, and one layer over all that the base model has read (Zeng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.context import Attending, Lean
from segue.models.heads.layer import Attention, Rows, SwiGLU, behind
from segue.models.heads.lean import LeanExperts, beside, product
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM

REHEARSED = 64  # tokens of the context in which a draft is timed
FRONTIER = 4  # branches of its stages, but for the first


@dataclass(frozen=True)
class Shape(base.Shape):
    heads: int = 5  # tokens that it guesses, one behind the other
    attention_heads: int = 4  # of its layer
    inner: int = 256  # width of the layer's feed-forward network
    grain: int = 64  # width of a token in the trigram
    rank: int = 64  # of what a draft head adds to the two states
    grams: int = 3  # newest tokens that are read together; 1 turns the trigram off
    near: bool = False  # the layer sees the last state alone: turns the context off


class ChimeraNetwork(Attending):
    """t_j = P(x + SiLU(W x)), x the vectors of the tokens j-2, j-1, j; W starts at zero.

    The layer reads [states of the base up to t; o_{t+1} ... o_{t+i-1}; t_{t+i}] and its output o_{t+i} stands for the
    state that the base would have there. Draft head i is the base's own vocabulary projection of
    h_t + o_{t+i} + B_i A_i [h_t; o_{t+i}], B_i starting at zero: at first two copies of the base's head, as published.
    """

    kind = "chimera"
    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        width, x = shape.width, shape.grams * shape.grain
        self.grain = nn.Linear(width, shape.grain, bias=False)
        self.residual = nn.Parameter(torch.zeros(x, x))
        self.trigram = nn.Linear(x, width, bias=False)
        self.attention = Attention(width, shape.attention_heads)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.feed = SwiGLU(width, shape.inner)
        self.down = nn.Parameter(torch.ones(shape.heads, shape.rank, 2 * width))
        self.up = nn.Parameter(torch.zeros(shape.heads, width, shape.rank))

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        return self.at_home(states)

    def newest(self, lm: LM, grams: Tensor) -> Tensor:
        """Trigram vectors (..., D) of tokens (..., grams), oldest first."""
        x = self.grain(self.at_home(lm.embed(grams)).detach()).flatten(-2)
        vectors: Tensor = self.trigram(x + F.silu(x @ self.residual))
        return vectors

    def forward(
        self,
        stage: int,
        vectors: Tensor,
        position: range,
        last: Tensor,
        context: Rows,
        chain: Rows | None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Rows]:
        """Guess number `stage`, from 0, behind tokens that the base has not read.

        From the trigram vectors (..., N, D) of their newest at N positions or at one, the last states (..., N, D) of
        the base, the context's rows (..., H, S, C), of which mask (N, S) may hide some, and the rows of the guesses
        before (..., H, N, stage, C): states (..., N, D) for the vocabulary projection, and rows with this guess's."""
        own = behind(chain, self.attention.rows(vectors, position))
        states = self.attention(vectors, position, context, mask, own)
        states = states + self.feed(self.norm(states))
        last = self.at_home(last).expand_as(states)
        both = torch.cat([last, states], -1)
        features = last + states + (both @ self.down[stage].T) @ self.up[stage].T
        return features, behind(chain, self.attention.rows(states, position))

    def made_lean(self, dtype: torch.dtype) -> LeanChimera:
        return LeanChimera(self, dtype)

    def passes(self, depth: int) -> int:
        return min(depth, self.shape.heads)

    def rehearse(self, lm: LM, passes: int) -> None:
        lean, context = self.rehearsed(lm, REHEARSED)
        context.read([0] * (REHEARSED + 1))
        last, stop, bias = context.last.to(lean.dtype), REHEARSED, None
        for stage in range(passes):
            count = FRONTIER if stage else 1
            vectors = lean.newest(lm, torch.zeros(count, self.shape.grams, dtype=torch.long, device=lm.device))
            queries, keys, values = lean.attention.project(vectors, range(stop, stop + 1))
            context.put(stop, keys, values)
            bias = beside(bias, torch.zeros(count, dtype=torch.long, device=lm.device), lean.dtype)
            stop += count
            features, states = lean.guesses(stage, vectors, queries, context.seen(stop), bias, last)
            context.put(stop - count, *lean.attention.project(states, range(stop, stop + 1))[1:])
            lean.logits(lm, features).softmax(-1, dtype=torch.float32).topk(min(FRONTIER, lm.vocab_size))

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        """Stages see the text's own tokens, as in the authors' code; every state begins a draft."""
        marks = Marks()
        states, length = self.at_home(lesson.states[-1]), lesson.ids.shape[1]
        places = torch.arange(length, device=states.device)
        context = self.attention.rows(states, range(length))
        mask = places[:, None] == places if self.shape.near else places[:, None] >= places
        vectors = self.newest(lm, lesson.ids[:, grams_of(places, self.shape.grams)])
        chain = None
        for stage in range(self.shape.heads):
            behind_it = vectors[:, (places + stage + 1).clamp(max=length - 1)]
            features, chain = self(stage, behind_it, range(stage + 1, stage + 1 + length), states, context, chain, mask)
            entries, positions, tokens = lesson.ahead(stage + 2)
            marks.guess(lm.head(features[entries, positions]), tokens)
        return marks


def grams_of(ends: Tensor, count: int) -> Tensor:
    """(..., count) places of the newest tokens at ends (...); the first token stands for those before it."""
    return (ends[..., None] + torch.arange(1 - count, 1, device=ends.device)).clamp(min=0)


class LeanChimera(Lean):
    """Drafts as the network does that it was made from."""

    def __init__(self, network: ChimeraNetwork, dtype: torch.dtype) -> None:
        super().__init__(network, dtype)
        self.shape = network.shape
        self._grain, self._trigram = product(network.grain.weight, dtype), product(network.trigram.weight, dtype)
        self._residual = product(network.residual.t(), dtype)
        self._feed = LeanExperts([network.feed], network.norm, None, dtype)
        self._down = [product(down, dtype) for down in network.down]
        self._up = [product(up, dtype) for up in network.up]

    def newest(self, lm: LM, grams: Tensor) -> Tensor:
        """Trigram vectors (N, D) of tokens (N, grams), oldest first."""
        x = self._grain(lm.embed(grams).to(self.dtype)).flatten(-2)
        return self._trigram(x + F.silu(self._residual(x)))

    def guesses(
        self, stage: int, vectors: Tensor, queries: Tensor, rows: Rows, bias: Tensor | None, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of trigram vectors (N, D), their queries (H, N, C), the rows (H, S, C) that they see but for `bias`, and the
        last state (1, D) of the base: states (N, D) for the vocabulary projection, and those that stand for the
        base's."""
        states = self.attention.find(vectors, queries, *rows, bias)
        states = self._feed.leave(states, self._feed.enter(states)[0])
        last = last.expand_as(states)
        return last + states + self._up[stage](self._down[stage](torch.cat([last, states], -1))), states
