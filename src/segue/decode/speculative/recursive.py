"""Recursive speculative decoding: a tree without duplicates, from tokens or from whole sequences without replacement.

1. RSD-C, constant branching b: the children of every node are b draws from its row q without replacement (the b largest
   of log q plus Gumbel noise have the same law).
2. RSD-S, stochastic beam: W beams carry phi, the log-probability of their sequence under the draft, and a perturbed G.
   A child t of a beam has phi_t = phi + log q(t), a raw value g_t = phi_t + Gumbel, and with Z the largest g of its
   siblings G_t = -log(e^-G - e^-Z + e^-g_t): noise of its own, given that the parent's was G.
3. Of all children of a level the W of largest G are kept, each a node of the tree: W sequences without replacement.
4. Siblings are tried in the order of G. The target verifies by recursive rejection: after a rejected child
   p <- norm(max(0, p - q)) and q loses that token.
5. Greedy runs take the b likeliest children, or a beam search of width W.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores
from segue.decode.speculative.base import Budget, Outcome, WithDraft, levels
from segue.models.draft import Draft, draw, likeliest, prefix
from segue.models.run import Request, Run

MODES = ("constant", "beam")
SEEDS = 2**16


@dataclass(slots=True)
class Drafting:
    """The draft model, and the noise of the stochastic beam."""

    draft: Draft
    noise: torch.Generator | None = None


@dataclass(frozen=True)
class Recursive(WithDraft):
    """Trees whose siblings never repeat: the better a small budget of nodes is used, the more it pays."""

    card = Card(
        paper=Paper(
            id="2402.14160",
            title="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
            year=2024,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="speculative decoding and SpecTr",
            setting="better at every fixed draft length and mostly at a fixed budget, Llama 2 and OPT",
        ),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "tree attention"),
        departs="the stochastic beam's noise comes from a generator seeded once per run by the run's own",
        check="spec",
    )

    mode: str = "constant"  # constant (RSD-C) or beam (RSD-S)
    branches: str = "2,2,2"  # b: children of every node, level by level (constant)
    width: int = 4  # W: sequences (beam)
    depth: int = 4  # levels (beam)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not allowed: {' or '.join(MODES)}")
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        levels("branches", self.branches, "2,2,2")

    def start(self, run: Run) -> Drafting:
        state = Drafting(super().start(run))
        if self.mode == "beam" and not run.target.greedy:
            seed = run.chance.index(torch.ones(SEEDS)) * SEEDS + run.chance.index(torch.ones(SEEDS))
            state.noise = torch.Generator().manual_seed(seed)
        return state

    def propose(self, run: Run, state: Drafting, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        tree = DraftTree.root(run.ids[-1])
        tree.replacement = False
        counts = levels("branches", self.branches, "2,2,2") if self.mode == "constant" else (self.width,) * self.depth
        beams = [(0, 0.0, 0.0)]  # node, phi, G
        for count in counts[: min(budget.depth, budget.nodes, state.draft.room(run))]:
            rows = yield from state.draft.rows(run.ids, tree)
            if self.mode == "beam":
                beams = self._beam(run, state, tree, beams, rows)
                continue
            grow = likeliest if run.target.greedy else draw
            nodes = [node for node, _, _ in beams]
            grown = [grow(run, tree, n, row, count, "recursive") for n, row in zip(nodes, rows, strict=True)]
            beams = [(child, 0.0, 0.0) for children in grown for child in children]
            if len(tree) > budget.nodes:
                break
        return tree

    def observe(self, run: Run, state: Drafting, outcome: Outcome) -> None:
        super().observe(run, state.draft, outcome)

    def rewind(self, run: Run, state: Drafting) -> None:
        super().rewind(run, state.draft)

    def _beam(
        self, run: Run, state: Drafting, tree: DraftTree, beams: list[tuple[int, float, float]], rows: list[Tensor]
    ) -> list[tuple[int, float, float]]:
        """The next level: the W children of largest G, in that order."""
        candidates: list[tuple[float, float, int, int]] = []  # G, phi, parent, token
        for (node, phi, perturbed), row in zip(beams, rows, strict=True):
            tree.rows[node] = row
            text = prefix(run, tree, node)
            if run.target.greedy:
                log_q = run.target.processed(row, text).double().log_softmax(-1)
                values = sums = phi + log_q
            else:
                tree.q[node] = q = run.target.p(row, text)
                sums = phi + q.double().log()
                values = conditioned(sums, perturbed, state.noise)
            best = values.topk(min(self.width, values.shape[-1]))
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if value > float("-inf"):
                    candidates.append((value, float(sums[token]), node, token))
        kept = heapq.nlargest(self.width, candidates)
        grown = []
        for value, phi, node, token in kept:
            share = 1.0 if tree.q else float(torch.tensor(phi).exp())
            child = tree.add(node, token, sampled=not run.target.greedy, score=share, source="recursive")
            grown.append((child, phi, value))
        return grown


def conditioned(sums: Tensor, parent: float, noise: torch.Generator | None) -> Tensor:
    """Perturbed values (V,) of the children with log-probabilities `sums`, given that the largest of them is the
    parent's own (Kool et al. 2019, arXiv:1903.06059, sec. 4.1, in its stable form)."""
    uniform = torch.rand(sums.shape, generator=noise, dtype=torch.float64).clamp_(1e-300, 1 - 1e-16)
    raw = sums - (-uniform.log()).log()
    largest = raw.max()
    v = parent - raw + torch.log1p(-torch.exp(raw - largest))
    value = parent - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return torch.where(torch.isneginf(raw), raw, value)
