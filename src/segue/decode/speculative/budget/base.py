"""What a budget controller decides, and what it decides from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from segue.data import DraftTree


@dataclass(frozen=True, slots=True)
class Budget:
    """What a proposal may cost: nodes besides the root, and depth below it."""

    nodes: int
    depth: int
    free: int | None = None  # depth of what is proposed at no cost, where it may be deeper than that
    together: int | None = None  # nodes of several drafters' proposals together, where that is more
    least: float = 0.0  # tokens that one more pass of the drafter must promise

    @property
    def most(self) -> int:
        """Nodes of any proposal."""
        return self.nodes if self.together is None else max(self.nodes, self.together)

    @property
    def deepest(self) -> int:
        """Depth of any proposal."""
        return self.depth if self.free is None else max(self.depth, self.free)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, or any other unit as long as it is one: only their ratios matter."""

    verify: Callable[[int], float]  # a forward of the target by its rows
    draft: Callable[[int], float] = lambda tokens: 0.0  # drafting that many tokens one after the other
    # Of a round that drafts anything: proposing, accepting and learning, without their forwards.
    overhead: Callable[[], float] = lambda: 0.0


MOST = 64  # nodes that a controller without an opinion of its own on width allows


class Planner(Protocol):
    """One controller at work on one request."""

    def plan(self, room: int) -> Budget:
        """What the next proposal may cost, at most `room` deep; decided before anything is drawn."""

    def trim(self, tree: DraftTree) -> DraftTree:
        """What of a proposal is worth verifying."""

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        """The round of the proposal `tree` (as it was before `trim`) gave these tokens."""


def reached(tree: DraftTree, tokens: Sequence[int]) -> int:
    """How many of `tokens` the tree foresaw."""
    children = tree.children()
    node = 0
    for depth, token in enumerate(tokens):
        match = next((c for c in children[node] if tree.tokens[c] == token), None)
        if match is None:
            return depth
        node = match
    return len(tokens)
