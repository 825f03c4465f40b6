"""What is asked of a model: guessed continuations of one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False, slots=True)
class DraftTree:
    """Guessed continuations of one sequence. Node 0 is the pending token; a parent always precedes its child.

    A child was either *sampled* from its parent's row in `q` or is a *delta* (retrieved, argmax, guessed): the
    acceptance rule differs, and taking one for the other is wrong by up to 0.3 in total variation.
    `scored_only` nodes are computed and read back, never accepted (lookahead's window).
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int] = field(default_factory=lambda: [0])
    sampled: list[bool] = field(default_factory=lambda: [False])
    scored_only: list[bool] = field(default_factory=lambda: [False])
    score: list[float] = field(default_factory=lambda: [1.0])  # estimated acceptance of the node
    source: list[str] = field(default_factory=lambda: [""])
    q: dict[int, Tensor] = field(default_factory=dict)  # parent node -> (V,) its sampled children were drawn from
    rows: dict[int, Tensor] = field(default_factory=dict)  # node -> (V,) a draft model's logits after it, where known
    replacement: bool = True  # siblings were drawn with replacement
    is_chain: bool = True

    @classmethod
    def root(cls, token: int) -> DraftTree:
        return cls([token], [-1])

    @classmethod
    def chain(cls, tokens: Sequence[int], source: str = "") -> DraftTree:
        """A single path; also the form of a prompt chunk."""
        n = len(tokens)
        if n == 0:
            raise ValueError("a tree needs at least the pending token, got no tokens")
        return cls(
            list(tokens), list(range(-1, n - 1)), list(range(n)), [False] * n, [False] * n, [1.0] * n, [source] * n
        )

    @classmethod
    def alternatives(cls, tokens: Sequence[int]) -> DraftTree:
        """Tokens that could each come next: all at one position, and none sees another."""
        n = len(tokens)
        no, scores, sources = [False] * n, [1.0] * n, [""] * n
        return cls(list(tokens), [-1] * n, [0] * n, no, list(no), scores, sources, is_chain=n == 1)

    @classmethod
    def from_paths(cls, root: int, paths: Iterable[Sequence[int]], source: str = "") -> DraftTree:
        """The trie of several continuations of `root`; shared prefixes become shared nodes."""
        tree = cls.root(root)
        tree.graft(paths, source)
        return tree

    def graft(self, paths: Iterable[Sequence[int]], source: str = "") -> None:
        """Add continuations of the root as delta proposals; what they share with each other becomes shared nodes."""
        child: dict[tuple[int, int], int] = {}
        for path in paths:
            node = 0
            for token in path:
                key = (node, token)
                if key not in child:
                    child[key] = self.add(node, token, source=source)
                node = child[key]

    def merge(self, other: DraftTree) -> None:
        """Add another tree's delta proposals from the same root, behind the own children of a node, which may be drawn.
        What both propose becomes one node that names both sources: two drafters that agree are right more often than
        either."""
        if any(other.sampled):
            raise ValueError("sampled proposals cannot be merged in: they must be tried in the order of their draws")
        if any(other.scored_only):
            raise ValueError("nodes that are only read back cannot be merged in: their drafter knows them by number")
        children = self.edges()
        placed = {0: 0}
        for node in range(1, len(other)):
            parent, token = placed[other.parents[node]], other.tokens[node]
            own = children.get((parent, token))
            if own is None:
                own = self.add(parent, token, score=other.score[node], source=other.source[node])
                children[parent, token] = own
            else:
                self.score[own] = max(self.score[own], other.score[node])
                self.source[own] = f"{self.source[own]}+{other.source[node]}"
            placed[node] = own

    def add(
        self,
        parent: int,
        token: int,
        *,
        sampled: bool = False,
        scored_only: bool = False,
        score: float = 1.0,
        source: str = "",
    ) -> int:
        """Append a child of `parent`; returns its node number. Siblings are kept in draw order."""
        n = len(self.tokens)
        if not 0 <= parent < n:
            raise ValueError(f"parent {parent} does not precede node {n}: add parents before their children")
        if self.scored_only[parent] and not scored_only:
            raise ValueError(f"node {parent} is scored only: a child that could be accepted cannot hang from it")
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.sampled.append(sampled)
        self.scored_only.append(scored_only)
        self.score.append(score)
        self.source.append(source)
        self.is_chain = self.is_chain and parent == n - 1
        return n

    def __len__(self) -> int:
        return len(self.tokens)

    def children(self) -> list[list[int]]:
        """Acceptable children of every node, in draw order."""
        lists: list[list[int]] = [[] for _ in self.tokens]
        for node in range(1, len(self.tokens)):
            if not self.scored_only[node]:
                lists[self.parents[node]].append(node)
        return lists

    def edges(self) -> dict[tuple[int, int], int]:
        """(parent, token) -> the acceptable child of that token; of several drawn alike the first, which alone can be
        accepted. A node that is only scored is none, whatever its token."""
        found: dict[tuple[int, int], int] = {}
        for node in range(1, len(self.tokens)):
            if not self.scored_only[node]:
                found.setdefault((self.parents[node], self.tokens[node]), node)
        return found

    def leaves(self) -> list[int]:
        """Nodes without children, scored-only ones included."""
        if self.is_chain:
            return [len(self.tokens) - 1]
        inner = set(self.parents)
        return [node for node in range(len(self.tokens)) if node not in inner]

    def path(self, node: int) -> list[int]:
        """Node numbers from the root to `node`, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def ancestors(self) -> Tensor:
        """(n, n) bool: entry [i, j] says that node i sees node j (its ancestors and itself)."""
        n = len(self.tokens)
        if self.is_chain:
            return torch.ones(n, n, dtype=torch.bool).tril_()
        rows: list[list[bool]] = []
        for node, parent in enumerate(self.parents):
            row = list(rows[parent]) if parent >= 0 else [False] * n
            row[node] = True
            rows.append(row)
        return torch.tensor(rows, dtype=torch.bool)

    def truncate(self, size: int, depth: int | None = None) -> DraftTree:
        """At most `size` nodes (the root included), none deeper than `depth`: those of highest survival, the product of
        the scores down to them. Equal ones are kept in order, so a template's prefix survives, and so does a tree
        with sampled nodes: choosing among drawn tokens by what was drawn would bias the samples. Scored-only nodes are
        kept: they are no proposal. Returns self when nothing has to go."""
        n = len(self.tokens)
        deepest = n if depth is None else depth
        fits = max(self.depths) <= deepest or all(
            d <= deepest or s for d, s in zip(self.depths, self.scored_only, strict=True)
        )
        if n <= size and fits:
            return self
        survival = self._survivals()
        proposals = [i for i in range(1, n) if not self.scored_only[i] and self.depths[i] <= deepest]
        proposals.sort(key=lambda i: (-survival[i], i))
        # A child's survival never exceeds its parent's and ties keep index order, so parents come first.
        return self.keep({0, *proposals[: max(size - 1, 0)], *(i for i in range(n) if self.scored_only[i])})

    def keep(self, keep: set[int]) -> DraftTree:
        """The subtree of these nodes, which must hold the root and the parent of each; their order stays."""
        order = sorted(keep)
        new = {old: i for i, old in enumerate(order)}
        parents = [-1, *(new[self.parents[old]] for old in order[1:])]
        return DraftTree(
            [self.tokens[old] for old in order],
            parents,
            [self.depths[old] for old in order],
            [self.sampled[old] for old in order],
            [self.scored_only[old] for old in order],
            [self.score[old] for old in order],
            [self.source[old] for old in order],
            {new[old]: row for old, row in self.q.items() if old in new},
            {new[old]: row for old, row in self.rows.items() if old in new},
            self.replacement,
            all(parent == i - 1 for i, parent in enumerate(parents)),
        )

    def narrow(self, leaves: int | None) -> DraftTree:
        """At most so many leaves, for a backend that takes no more: proposals of the highest survival stay, of a tree
        with sampled nodes those drawn first. Scored-only branches are kept, whose drafter knows them by number."""
        if leaves is None or len(tips := self.leaves()) <= leaves:
            return self
        if any(self.sampled):
            return self._beginning(leaves)
        survival = self._survivals()
        tips.sort(key=lambda node: (not self.scored_only[node], -survival[node], node))
        fixed = sum(self.scored_only[tip] for tip in tips)
        kept = {node for tip in tips[: max(leaves, fixed)] for node in self.path(tip)}
        return self.keep({0} | kept)

    def _beginning(self, leaves: int) -> DraftTree:
        """The nodes before the first one that would be a leaf too many. Where it hangs was decided before it was drawn;
        choosing among whole branches would not be blind to what was drawn, since a tree's shape may follow that."""
        kept = {0, *(node for node in range(len(self.tokens)) if self.scored_only[node])}
        inner = {self.parents[node] for node in kept}
        tips = len(kept - inner)
        for node in range(1, len(self.tokens)):
            if self.scored_only[node]:
                continue
            tips += self.parents[node] in inner
            if tips > leaves:
                break
            inner.add(self.parents[node])
            kept.add(node)
        return self.keep(kept)

    def _survivals(self) -> list[float]:
        """For every node the product of the scores down to it; 1 for all of a tree with sampled nodes, since choosing
        among drawn tokens by what was drawn would bias the samples."""
        survival = [1.0] * len(self.tokens)
        if not any(self.sampled):
            for node in range(1, len(self.tokens)):
                survival[node] = survival[self.parents[node]] * self.score[node]
        return survival
