"""Beam search: the likeliest whole text, not the likeliest next token, as far as a few hypotheses can see.

1. Read the prompt; the beam holds the empty output.
2. Extend every running hypothesis by every token; keep the best by the sum of log-probabilities.
3. Those among the best `beams` that end the text are finished, ranked by sum / length ** length_penalty; the best
   unfinished ones run on, read in one forward.
4. Stop when no running hypothesis can still win, or when `beams` are finished.
5. Give the best finished text; all of them are its candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.beam import Beam as Search
from segue.choose.parts.beam import search
from segue.choose.parts.hypothesis import deliver, first
from segue.choose.search.base import Searching
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class Beam(Searching):
    """A higher likelihood than greedy decoding finds, for the price of that many texts in one batch."""

    card = Card(
        paper=Paper(id="1211.3711", title="Sequence Transduction with Recurrent Neural Networks", year=2012),
        claim=Claim(value=None, unit="none", baseline="greedy", setting="a technique; transformers is the reference"),
        exact=(SameTarget(target="beam"),),
        check="translation",
    )

    def run(self, run: Run) -> Decoder[None]:
        root = yield from first(run)
        beam = Search(run, self.beams, self.length_penalty, self.early, [root])
        yield from search(run, [beam], lambda: beam.admit(beam.propose()))
        deliver(run, beam.finished)
