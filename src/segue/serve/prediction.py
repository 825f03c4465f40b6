"""Predicted outputs: the client sends the text that it expects, and that text is the draft.

1. Stand at the start of the predicted tokens.
2. Propose those behind the place, as one chain; verify it in one forward like any draft.
3. The place moves on over what was written as predicted.
4. Where the answer departs, look the last n tokens up in the prediction (the longest n first, the nearest match first)
   and stand behind the match; without one, propose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree
from segue.decode.speculative.base import Budget, Speculative
from segue.models.run import Run


@dataclass(slots=True)
class Place:
    """Where in the prediction an answer is."""

    at: int = 0  # the next predicted token
    read: int = 0  # tokens of the answer that were compared


@dataclass(frozen=True)
class Prediction(Speculative):
    """Drafts from a text that the client expects; exact by verification, whatever it says."""

    card = Card(
        paper=Paper(id="openai:predicted-outputs", title="Predicted Outputs", year=2024),
        claim=Claim(value=None, unit="none", baseline="", setting=""),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits",),
        check="spec",
    )

    tokens: tuple[int, ...] = ()  # of the predicted text
    draft_tokens: int = 16  # proposed at a time
    max_ngram: int = 4  # longest match with which the answer finds back into the prediction

    def start(self, run: Run) -> Place:
        return Place()

    def propose(self, run: Run, state: Place, budget: Budget) -> DraftTree:
        output = run.output
        for token in output[state.read :]:
            expected = state.at < len(self.tokens) and self.tokens[state.at] == token
            state.at = state.at + 1 if expected else self._find(output, state.at)
            state.read += 1
            if not expected:
                state.read = len(output)
                break
        guess = self.tokens[state.at : state.at + min(self.draft_tokens, budget.nodes, budget.depth)]
        tree = DraftTree.chain([run.ids[-1], *guess], source="prediction")
        return tree

    def _find(self, output: list[int], at: int) -> int:
        """The place behind the match of the answer's end that is nearest to `at`; the end where there is none."""
        for n in range(min(self.max_ngram, len(output)), 0, -1):
            last = tuple(output[-n:])
            places = [i + n for i in range(len(self.tokens) - n + 1) if self.tokens[i : i + n] == last]
            if places:
                return min(places, key=lambda place: abs(place - at))
        return len(self.tokens)
