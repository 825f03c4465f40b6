"""How likely a proposed token is accepted, learned from what came: beliefs by drafter, its own score, and depth.

A drafter's score says which of its guesses are better, not how good they are here. Each kind of node (source, score,
depth) has discounted counts of hits and misses; its estimate starts from a parent table's (a request's from that of its
kind, that from all requests'), and the last parent starts from the score itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data import DraftTree

Key = tuple[str, float, int]
STRENGTH = 4.0  # observations that the parent's estimate is worth
DISCOUNT = 0.995  # per round: half is forgotten after 140
DEEPEST = 4  # depths from here on are one
FINE, COARSE, STEPS = 100, 0.1, 20  # steps of a score: hundredths below a tenth, then twentieths
LIKELY = 0.65  # chance of a level that nothing is known of
SURE, HOPELESS = 0.9, 0.02  # a score outside says more than a drafter can know beforehand


class Calibration:
    """Estimates of acceptance given that the parent was accepted."""

    def __init__(self, parent: Calibration | None = None) -> None:
        self._parent = parent
        self._counts: dict[Key, tuple[float, float, int]] = {}  # hits, observations, round of the last
        self._round = 0

    def estimate(self, key: Key) -> float:
        """Chance in (0, 1) that such a node is accepted."""
        prior = min(max(key[1], HOPELESS), SURE) if self._parent is None else self._parent.estimate(key)
        known = self._counts.get(key)
        if known is None:
            return prior
        hits, seen, when = known
        fade = DISCOUNT ** (self._round - when)
        return (hits * fade + STRENGTH * prior) / (seen * fade + STRENGTH)

    def survivals(self, tree: DraftTree) -> list[float]:
        """For every node the chance that the accepted path reaches it."""
        known: dict[Key, float] = {}
        survival = [1.0] * len(tree)
        for node in range(1, len(tree)):
            if tree.scored_only[node]:
                survival[node] = 0.0
                continue
            key = key_of(tree, node)
            if key not in known:
                known[key] = self.estimate(key)
            survival[node] = survival[tree.parents[node]] * known[key]
        return survival

    def learn(self, tree: DraftTree, tokens: Sequence[int]) -> None:
        """The text went on with `tokens`: every child of a node on that path was right or wrong, verified or not."""
        children = tree.children()
        seen: list[tuple[Key, bool]] = []
        node: int | None = 0
        for token in tokens:
            if node is None:
                break
            following = None
            for child in children[node]:
                hit = tree.tokens[child] == token
                seen.append((key_of(tree, child), hit))
                if hit:
                    following = child
            node = following
        self._observe(seen)

    def learn_levels(self, tree: DraftTree, tokens: Sequence[int], source: str) -> None:
        """The same of whole levels of one drafter: right where any of its children of the path's node was, whatever
        their scores. What it has on the path counts, no matter who else proposed it."""
        children = tree.children()
        seen: list[tuple[Key, bool]] = []
        node = 0
        for depth, token in enumerate(tokens, start=1):
            own = [c for c in children[node] if source in tree.source[c].split("+")]
            if not own:
                break
            hit = next((c for c in own if tree.tokens[c] == token), None)
            seen.append((level(source, depth), hit is not None))
            if hit is None:
                break
            node = hit
        self._observe(seen)

    def _observe(self, seen: list[tuple[Key, bool]]) -> None:
        self._round += 1
        for key, hit in seen:
            hits, count, when = self._counts.get(key, (0.0, 0.0, self._round))
            fade = DISCOUNT ** (self._round - when)
            self._counts[key] = hits * fade + hit, count * fade + 1.0, self._round
        if self._parent is not None:
            self._parent._observe(seen)


def level(source: str, depth: int) -> Key:
    """All that a drafter proposes at a depth."""
    return source, LIKELY, min(depth, DEEPEST)


def key_of(tree: DraftTree, node: int) -> Key:
    """Scores that are nearly alike are one kind: those of a network are all different."""
    score = tree.score[node]
    rounded = round(score * FINE) / FINE if score < COARSE else round(score * STEPS) / STEPS
    return tree.source[node], rounded, min(tree.depths[node], DEEPEST)
