"""The nouns: what is asked of a model, what comes back, and what a user gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor


class CapabilityError(ValueError):
    """The model, or this build, cannot do what was asked; the message names the way out."""


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
        if n <= size and all(d <= deepest or s for d, s in zip(self.depths, self.scored_only, strict=True)):
            return self
        survival = [1.0] * n
        if not any(self.sampled):
            for node in range(1, n):
                survival[node] = survival[self.parents[node]] * self.score[node]
        proposals = [i for i in range(1, n) if not self.scored_only[i] and self.depths[i] <= deepest]
        proposals.sort(key=lambda i: (-survival[i], i))
        # A child's survival never exceeds its parent's and ties keep index order, so parents come first.
        keep = {0, *proposals[: max(size - 1, 0)], *(i for i in range(n) if self.scored_only[i])}
        new = {old: i for i, old in enumerate(sorted(keep))}
        tree = DraftTree.root(self.tokens[0])
        tree.replacement = self.replacement
        for old in sorted(keep - {0}):
            tree.add(
                new[self.parents[old]],
                self.tokens[old],
                sampled=self.sampled[old],
                scored_only=self.scored_only[old],
                score=self.score[old],
                source=self.source[old],
            )
        tree.q = {new[old]: row for old, row in self.q.items() if old in new}
        return tree


@dataclass(frozen=True, slots=True)
class Want:
    """What a forward must compute. Nothing is computed that nobody wants."""

    logits: Literal["all", "last", "none"] | tuple[int, ...] = "all"  # nodes whose logits rows come back
    topk: int = 0  # ids of the k largest logits of every node
    hidden: tuple[int, ...] = ()  # states: 0 the embeddings, i the output of layer i, the last one after the norm
    attention: tuple[int, int] | None = None  # (layer, node): that node's attention weights over all rows
    layers: tuple[int, ...] | None = None  # run only these layers

    def rows(self, n: int) -> list[int]:
        """The nodes of an n-node tree whose logits are needed, in order."""
        if self.topk or self.logits == "all":
            return list(range(n))
        if self.logits == "last":
            return [n - 1]
        return [] if self.logits == "none" else sorted(node % n for node in self.logits)


class PackedLogits:
    """Logits of all rows of one forward (R, V); the arg-max of the whole pack is taken once, when first asked for."""

    __slots__ = ("_top", "logits")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._top: tuple[list[float], list[int]] | None = None

    def top(self) -> tuple[list[float], list[int]]:
        """Largest value and its index per row. The maximum propagates NaN, so it doubles as the health check."""
        if self._top is None:
            values, ids = self.logits.max(-1)
            self._top = values.tolist(), ids.tolist()
        return self._top


@dataclass(slots=True)
class Scores:
    """What a forward gave one tree."""

    packed: PackedLogits
    start: int  # this item's first row in the pack
    nodes: list[int]  # node of every row, ascending
    topk: Tensor | None = None  # (n, k) token ids
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> (n, D)
    attention: Tensor | None = None  # (H, rows)

    @property
    def logits(self) -> Tensor:
        """(R, V), one row for each node of `nodes`."""
        return self.packed.logits[self.start : self.start + len(self.nodes)]

    def row(self, node: int) -> Tensor:
        """(V,) logits after `node`; negative numbers count from the last row."""
        if node < 0:
            return self.packed.logits[self.start + len(self.nodes) + node]
        index = node if self.nodes[-1] == len(self.nodes) - 1 else self.nodes.index(node)
        return self.packed.logits[self.start + index]

    def argmax(self) -> list[int]:
        """The most likely token after each node of `nodes`."""
        return self.packed.top()[1][self.start : self.start + len(self.nodes)]

    def finite(self) -> bool:
        values = self.packed.top()[0][self.start : self.start + len(self.nodes)]
        return all(v - v == 0.0 for v in values)


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class Settings:
    """How one request is decoded. Temperature 0 is greedy."""

    max_tokens: int = 128  # new tokens at most
    min_tokens: int = 0  # no end-of-text before this many new tokens
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of this mass
    min_p: float = 0.0  # keep tokens above this share of the likeliest
    typical_p: float = 1.0  # keep the locally typical set of this mass
    repetition_penalty: float = 1.0  # divide (multiply) logits of tokens seen in prompt or output
    presence_penalty: float = 0.0  # subtract once from tokens of the output
    frequency_penalty: float = 0.0  # subtract per occurrence in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    bad_words: tuple[str, ...] = ()  # strings that must not appear as token sequences
    stop: tuple[str, ...] = ()  # strings that end the text (and are left out of it)
    stop_tokens: tuple[int, ...] = ()  # further end-of-text ids
    ignore_eos: bool = False  # decode on after end-of-text
    logprobs: int | None = None  # log-probabilities of each token and of this many alternatives
    seed: int | None = None  # seed of this request's own generator

    def __post_init__(self) -> None:
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ("",)
            _check(name, value, all(isinstance(s, str) and s for s in strings), "non-empty strings")
            object.__setattr__(self, name, strings)
        value = self.stop_tokens
        ids = tuple(value) if isinstance(value, Iterable) else (-1,)
        ok = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
        _check("stop_tokens", value, ok, "token ids")
        object.__setattr__(self, "stop_tokens", ids)
        whole = {"max_tokens": 1, "min_tokens": 0, "top_k": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _check(name, value, ok, f"a whole number of at least {least}")
        unit_interval = "a number above 0 and at most 1 (1 switches it off)"
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            _check(name, value, _number(value) and 0 < value <= 1, unit_interval)
        low, high = "a number from 0 (off) to 1", "a number from 0 (greedy) to 100"
        _check("min_p", self.min_p, _number(self.min_p) and 0 <= self.min_p <= 1, low)
        t = self.temperature
        _check("temperature", t, _number(t) and (t == 0 or 1e-4 <= t <= 100), high + ", not closer to 0 than 0.0001")
        r = self.repetition_penalty
        _check("repetition_penalty", r, _number(r) and 0.01 <= r <= 100, "a number from 0.01 to 100 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, _number(value) and -100 <= value <= 100, "a number from -100 to 100 (0 is off)")
        k = self.logprobs
        ok = k is None or (isinstance(k, int) and not isinstance(k, bool) and 0 <= k <= 1000)
        _check("logprobs", k, ok, "a whole number from 0 to 1000")
        s = self.seed
        ok = s is None or (isinstance(s, int) and not isinstance(s, bool) and -(2**63) <= s < 2**63)
        _check("seed", s, ok, "a whole number of 64 bits")
        _check(
            "min_tokens", self.min_tokens, self.min_tokens <= self.max_tokens, f"at most max_tokens={self.max_tokens}"
        )
        try:
            bias = {int(token): float(value) for token, value in dict(self.logit_bias).items()}
        except (TypeError, ValueError):
            bias = {-1: 0.0}
        _check("logit_bias", self.logit_bias, all(i >= 0 for i in bias), "a mapping of token ids to numbers")
        _check("logit_bias", self.logit_bias, all(b == b and abs(b) <= 1e4 for b in bias.values()), "finite numbers")
        object.__setattr__(self, "logit_bias", bias)

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]


FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Stats:
    """What one request cost. A forward that several requests shared counts once for each of them."""

    method: str = ""
    tokens: int = 0  # new tokens
    prompt_tokens: int = 0
    target_forwards: int = 0  # passes of the target model, prefill included
    prefill_forwards: int = 0
    draft_forwards: int = 0  # passes of other models
    drafted: int = 0  # proposed tokens
    accepted: int = 0  # proposed tokens that were kept
    seconds: float = 0.0  # from admission to the last token
    first_token_seconds: float = 0.0
    peak_memory_bytes: int = 0  # of the process (or the GPU) so far

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per target forward; a prefill counts as one forward, so plain decoding gives exactly 1."""
        forwards = self.target_forwards - self.prefill_forwards + 1
        return self.tokens / forwards if self.target_forwards else 0.0

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        data: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["tokens_per_forward"] = round(self.tokens_per_forward, 4)
        data["acceptance"] = None if self.acceptance is None else round(self.acceptance, 4)
        data["tokens_per_second"] = round(self.tokens_per_second, 2)
        return data


@dataclass(slots=True)
class TokenLogprob:
    """Log-probability of one new token under the model (before sampling settings), with the likeliest others."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class Completion:
    """The answer to one prompt."""

    text: str
    tokens: list[int]  # new tokens only
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[TokenLogprob] | None = None

    def as_dict(self) -> dict[str, object]:
        data: dict[str, object] = {
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "stats": self.stats.as_dict(),
        }
        if self.logprobs is not None:
            data["logprobs"] = [{"token": t.token, "logprob": t.logprob, "top": t.top} for t in self.logprobs]
        return data


Distribution = Callable[[int], Tensor]  # node -> (V,) probabilities after that node
