"""Diverse beam search: groups of beams that are kept from saying the same thing at the same step.

1. The beam is divided into groups of equal size, which all start from the prompt.
2. At every step the groups take turns. A group's candidates are ranked by their log-probability minus `strength` times
   the number of beams of earlier groups that chose the same token at this step (Hamming diversity).
3. Within a group, selection, finished list and end are those of beam search; the penalty stays in the score.
4. The chosen beams of all groups are read in one forward.
5. Finished texts of all groups are ranked together, with their penalties or by their log-probability alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.beam import Beam, ranked, search
from segue.choose.parts.hypothesis import Hypothesis, deliver, first
from segue.choose.search.base import Searching
from segue.models.run import Decoder, Run

RANKS = ("score", "logp")


@dataclass(frozen=True)
class DiverseBeam(Searching):
    """Several different answers, where a beam gives variations of one."""

    card = Card(
        paper=Paper(
            id="1610.02424",
            title="Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models",
            year=2016,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="beam search",
            setting="better top-1 and more distinct n-grams at nearly the same cost (image captions, translation)",
        ),
        exact=(SameTarget(target="diverse_beam"),),
        departs="only the Hamming dissimilarity of the paper's four; beams that end at a step do not count for the "
        "groups behind, as in transformers' implementation",
        check="translation",
    )

    groups: int = 4  # the beams are divided among them, evenly
    strength: float = 0.5  # penalty for a beam of an earlier group with the same token at the same step; 0 for none
    rank: str = "score"  # finished texts of all groups are ranked by score (penalties included) or by logp

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.beams % self.groups:
            raise ValueError(f"groups={self.groups} is not allowed: it must divide beams={self.beams}")
        if not 0 <= self.strength <= 1e9:
            raise ValueError(f"strength={self.strength} is not allowed: a number of at least 0 (0 is no diversity)")
        if self.rank not in RANKS:
            raise ValueError(f"rank={self.rank!r} is not allowed: {' or '.join(RANKS)}")

    def run(self, run: Run) -> Decoder[None]:
        root = yield from first(run)
        size = self.beams // self.groups
        groups = [Beam(run, size, self.length_penalty, self.early, [root]) for _ in range(self.groups)]

        def step() -> None:
            chosen = torch.zeros(run.lm.vocab_size, device=run.lm.device)
            for group in groups:
                if group.done:
                    continue
                group.admit(group.propose(-self.strength * chosen))
                for hypothesis in group.running:
                    chosen[hypothesis.tokens[-1]] += 1

        yield from search(run, groups, step)
        found = ranked(groups)
        if self.rank == "logp":
            found.sort(key=self._normalised, reverse=True)
        deliver(run, found)

    def _normalised(self, hypothesis: Hypothesis) -> float:
        worth: float = hypothesis.logp / len(hypothesis.tokens) ** self.length_penalty
        return worth
