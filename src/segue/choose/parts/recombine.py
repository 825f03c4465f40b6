"""Recombination: texts that end alike are taken to go on alike, and share what follows (or what precedes as well)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

from segue.choose.parts.dag import Dag
from segue.choose.parts.hypothesis import Hypothesis
from segue.models.run import Run

RULES = ("zip", "rcb", "none")


class Recombination:
    """Places texts in a lattice. A new one whose last `ngram` tokens are those of an earlier text merges with it, where
    their lengths differ by less than `gap`, no circle would be closed, and the request (its constraint, stop strings,
    least length) lets both go on in the same ways. Of a grammar all that is known is the text so far: under one, texts
    do not merge.

    rcb: the new text's last node becomes the earlier one; so what follows is shared, not what precedes.
    zip: also the nodes before it, pair by pair, as far as the two texts go back with the same tokens.
    """

    def __init__(self, run: Run, dag: Dag, rule: str, ngram: int, gap: int) -> None:
        self._run = run
        self._dag = dag
        self._rule = rule
        self._ngram = ngram
        self._gap = gap
        self._ending: dict[Hashable, list[int]] = defaultdict(list)  # last tokens and state -> nodes, oldest first
        self._state: dict[int, Hashable] = {0: self._state_of([])}

    def place(self, hypothesis: Hypothesis, *, keep: bool = False) -> bool:
        """Add the last token of a text, whose `state` is the node of the text before it; afterwards it is its own.
        False where it has merged with an earlier one, or what it goes on from has: then nothing goes on from it.
        With `keep` it stays."""
        dag, tokens = self._dag, hypothesis.tokens
        if dag.find(hypothesis.state) != hypothesis.state and not keep:
            return False
        allowed = self._run.constraint is None or self._run.constraint.accepts(tuple(tokens))
        over = hypothesis.reason == "stop"
        node = dag.add(hypothesis.state, tokens[-1], hypothesis.logps[-1], over=over, cut=allowed)
        self._state[node] = state = self._state_of(tokens)
        hypothesis.state = node
        if self._rule == "none" or len(tokens) < self._ngram:
            return True
        key = tuple(tokens[-self._ngram :]), state
        twin = None if keep else next((n for n in self._ending[key] if self._fits(node, n)), None)
        if twin is not None:
            self._merge(node, twin)
            return False
        if hypothesis.reason != "length":  # nothing will follow it that could be shared
            self._ending[key].append(node)
        return True

    def _fits(self, node: int, other: int) -> bool:
        dag = self._dag
        there = dag.find(other) == other
        return there and abs(dag.length(node) - dag.length(other)) < self._gap and not dag.related(node, other)

    def _merge(self, node: int, other: int) -> None:
        dag = self._dag
        before, other_before = dag.origin(node), dag.origin(other)
        dag.join(node, other)
        while self._rule == "zip" and before and other_before and not dag.related(before, other_before):
            if dag.token(before) != dag.token(other_before) or self._state[before] != self._state[other_before]:
                break
            earlier = dag.origin(before), dag.origin(other_before)
            dag.join(before, other_before)
            before, other_before = earlier

    def _state_of(self, tokens: list[int]) -> Hashable:
        """What of a text, beside its last tokens, the request lets decide how it may go on."""
        settings = self._run.settings
        state = None if self._run.constraint is None else self._run.constraint.state(tuple(tokens))
        longest = max((len(text.encode()) for text in (*settings.stop, *settings.bad_words)), default=0)
        text = self._run.lm.decode(tokens[-longest - 1 :])[-longest:] if longest else ""
        return state, text, max(settings.min_tokens - len(tokens), 0)
