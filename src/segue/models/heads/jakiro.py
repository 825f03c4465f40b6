"""One decoder layer of two experts that guesses the base model's next states and the ones after (Huang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import base
from segue.models.heads.context import Attending, Lean
from segue.models.heads.layer import Attention, Rows, SwiGLU
from segue.models.heads.lean import LeanExperts, beside, product
from segue.models.heads.lesson import Lesson, Marks
from segue.models.lm import LM

REHEARSED = 64  # tokens of the context in which a draft is timed
FRONTIER = 4  # branches of its passes, but for the first
NOISE = 0.1  # at most, of the states' size, so that guessed states do later
LIKENESS = 0.1  # weight of the vocabulary's cross-entropy beside the distance of states
SECOND = 0.5  # weight of the second output's loss


@dataclass(frozen=True)
class Shape(base.Shape):
    attention_heads: int = 4
    inner: int = 256  # width of an expert
    experts: int = 2  # 1: a plain layer with as many weights and no second output

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts > 2:
            raise ValueError(f"experts={self.experts} is not allowed: 1 or 2")


class JakiroNetwork(Attending):
    """x_t = P [e(token t+1); h_t] enters the layer; behind its attention two experts E_0 and E_1, each with a weight
    from two softmaxes of two, w and v:
    left = w_0 E_0 + w_1 E_1 is (with the residual) the guess of h_{t+1}; right, the larger of v E less the smaller,
    that of h_{t+2}. The base's own vocabulary projection makes tokens of both."""

    kind = "jakiro"
    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        width = shape.width
        self.enter = nn.Linear(2 * width, width, bias=False)
        self.attention = Attention(width, shape.attention_heads)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        inner = 2 * shape.inner // shape.experts
        self.experts = nn.ModuleList(SwiGLU(width, inner) for _ in range(shape.experts))
        self.gate = nn.Linear(width, 4, bias=False) if shape.experts == 2 else None

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        vectors = self.at_home(lm.embed(following)).detach()
        entering: Tensor = self.enter(torch.cat([vectors, self.at_home(states)], -1))
        return entering

    def forward(
        self, entering: Tensor, positions: range, rows: Rows, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What entered (..., N, D) at N positions, and the rows that it sees but for `mask`, as Attention takes them ->
        guesses (..., N, D) of the next state and, where there are two experts, of the one after."""
        states = self.attention(entering, positions, rows, mask)
        inner = self.norm(states)
        if self.gate is None:
            return states + self.experts[0](inner), None
        first, second = (expert(inner) for expert in self.experts)
        gates = self.gate(inner)
        sums, differences = gates[..., :2].softmax(-1), gates[..., 2:].softmax(-1)
        left = sums[..., :1] * first + sums[..., 1:] * second
        right = differences[..., :1] * first - differences[..., 1:] * second
        top = torch.where(differences[..., :1] > differences[..., 1:], 1.0, -1.0).to(right.dtype)
        return states + left, states + top * right

    def made_lean(self, dtype: torch.dtype) -> LeanJakiro:
        return LeanJakiro(self, dtype)

    def passes(self, depth: int) -> int:
        return depth if self.gate is None else max(depth - 1, 1)

    def rehearse(self, lm: LM, passes: int) -> None:
        lean, context = self.rehearsed(lm, REHEARSED)
        ids, both = [0] * (REHEARSED + 1), self.gate is not None
        states, queries = context.read(ids)
        stop, bias = REHEARSED, None
        for level in range(passes):
            guessed = lean.guesses(states, queries, context.seen(stop), bias, both and level == passes - 1)
            lean.logits(lm, guessed.flatten(0, 1)).softmax(-1, dtype=torch.float32).topk(min(FRONTIER, lm.vocab_size))
            if level == passes - 1:
                break
            nodes = torch.zeros(FRONTIER, dtype=torch.long, device=lm.device)
            states = lean.entering(lm, guessed[:1, 0].expand(FRONTIER, -1), nodes)
            queries, keys, values = lean.attention.project(states, range(stop, stop + 1))
            context.put(stop, keys, values)
            stop += FRONTIER
            bias = beside(bias, nodes, guessed.dtype)

    def learn(self, lm: LM, lesson: Lesson) -> Marks:
        """The distance of the guessed states, and how their next tokens' distributions differ; states that enter are
        disturbed a little, as guessed ones are."""
        marks = Marks()
        states = self.at_home(lesson.states[-1])
        entering = self.entering(lm, self._disturbed(states[:, :-1], lesson), lesson.ids[:, 1:])
        places = torch.arange(entering.shape[1], device=states.device)
        mask = places[:, None] >= places
        span = range(len(places))
        outputs = self(entering, span, self.attention.rows(entering, span), mask)
        for place, (guessed, weight) in enumerate(zip(outputs, (1.0, SECOND), strict=True)):
            if guessed is None:
                break
            entries, positions, tokens = lesson.ahead(place + 2)
            features, true = guessed[entries, positions], states[entries, positions + place + 1]
            logits = lm.head(features).float()
            with torch.no_grad():
                wanted = lm.head(true).float().softmax(-1)
            count = max(len(tokens), 1)
            distance = F.smooth_l1_loss(features, true, reduction="sum") / (count * self.shape.width)
            unlike = -(wanted * logits.log_softmax(-1)).sum() / count
            marks.note(weight * (distance + LIKENESS * unlike), logits, tokens)
        return marks

    def _disturbed(self, states: Tensor, lesson: Lesson) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return states
        # The noise follows from the texts alone: training that was cut short goes on as it would have.
        seed = int((lesson.ids * torch.arange(1, lesson.ids.shape[1] + 1, device=lesson.ids.device)).sum())
        noise = torch.rand(states.shape, generator=torch.Generator().manual_seed(seed)).to(states)
        size = states.pow(2).mean().sqrt()
        return states + (2 * noise - 1) * (NOISE * size)


class LeanJakiro(Lean):
    """Drafts as the network does that it was made from."""

    def __init__(self, network: JakiroNetwork, dtype: torch.dtype) -> None:
        super().__init__(network, dtype)
        self._enter = product(network.enter.weight, dtype, network.enter.bias)
        self._experts = LeanExperts(
            [cast("SwiGLU", expert) for expert in network.experts], network.norm, network.gate, dtype
        )
        self.foresees = network.gate is not None  # whether it guesses the states after the next as well
        # Of the experts' difference, by which of the two weights is the larger one.
        self._signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype, device=network.norm.weight.device)

    def entering(self, lm: LM, states: Tensor, following: Tensor) -> Tensor:
        return self._enter(torch.cat([lm.embed(following).to(self.dtype), states.to(self.dtype)], -1))

    def guesses(self, states: Tensor, queries: Tensor, rows: Rows, bias: Tensor | None, both: bool) -> Tensor:
        """Of what entered (N, D), its queries (H, N, C) and the rows (G, S, C) that it sees but for `bias`: guesses
        (N, M, D) of the next states, and where `both` are wanted of the ones after them as well."""
        states = self.attention.find(states, queries, *rows, bias)
        inner, gates = self._experts.enter(states)
        if not self.foresees:
            return self._experts.leave(states, inner)[:, None]
        shares = gates.view(-1, 2, 2).softmax(-1)
        if not both:
            return self._experts.mixed(states, inner, shares[:, :1])
        second = shares[:, 1]
        second *= torch.where(second[:, :1] > second[:, 1:], self._signs[0], self._signs[1])
        return self._experts.mixed(states, inner, shares)
