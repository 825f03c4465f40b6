"""Dynamic beam allocation: texts that contain given phrases, for the price of a beam, however many phrases there are.

1. Phrases are token sequences; a hypothesis' progress is the number of their tokens that it has met, with those of a
   phrase that is under way (an automaton with the links of Knuth-Morris-Pratt keeps count).
2. Candidates of a step: the best continuations over all; for every hypothesis each token that brings a phrase further;
   for every hypothesis its best token. An end of text counts only once all phrases are met, and nothing counts behind
   which they cannot be met any more within the length limit.
3. The beam is divided into banks by progress: bank b gets an equal share of the places, the last bank the remainder.
   Places that a bank cannot fill go to the bank before it (those of the first to the last).
4. Each bank takes its best candidates; those that end the text are finished, the others are read in one forward.
5. Ends and ranking are those of beam search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.beam import Beam, search
from segue.choose.parts.hypothesis import Hypothesis, deliver, first, log_p, satisfied
from segue.choose.search.base import Searching
from segue.data import ConstraintError
from segue.models.constraint import spelling
from segue.models.run import Decoder, Run
from segue.ops.automaton import Phrases


@dataclass(frozen=True)
class DynamicBeamAllocation(Searching):
    """Every phrase is in the text as it was given, wherever the model likes it best."""

    card = Card(
        paper=Paper(
            id="1804.06609",
            title="Fast Lexically Constrained Decoding with Dynamic Beam Allocation for Neural Machine Translation",
            year=2018,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="grid beam search",
            setting="cost independent of the number of constraints; large BLEU gains with phrases of the reference",
        ),
        exact=(SameTarget(target="dynamic_beam_allocation"),),
        departs="a broken match falls back to the longest one under way, where the paper's implementation starts anew "
        "and misses overlaps (A A B in A A A B); banks hold running hypotheses only; phrases to avoid are the setting "
        "bad_words",
        check="translation",
    )

    phrases: str | Sequence[str | Sequence[int]] = ""  # texts that must occur, separated by |; in Python also token ids

    def run(self, run: Run) -> Decoder[None]:
        automaton = self._automaton(run)
        root = yield from first(run)
        root.state = automaton.start()
        beam = Beam(run, self.beams, self.length_penalty, self.early, [root])
        banks = sum(map(len, automaton.phrases)) + 1

        def step() -> None:
            self._admit(beam, self._candidates(run, beam, automaton), automaton, banks)

        yield from search(run, [beam], step)
        deliver(run, beam.finished)

    def _automaton(self, run: Run) -> Phrases:
        given = [p for p in self.phrases.split("|") if p.strip()] if isinstance(self.phrases, str) else self.phrases
        # In the middle of a text a phrase stands behind a space.
        lists = [spelling(" " + p.strip(), run.lm) if isinstance(p, str) else list(p) for p in given]
        automaton = Phrases(run.lm.vocab_size, run.ends, lists)
        least = automaton.shortest(automaton.start()) or 0
        if least > run.max_tokens:
            raise ConstraintError(
                f"phrases={self.phrases!r} need {least} tokens, and the answer may have {run.max_tokens}: raise "
                "max_tokens, or leave some out"
            )
        return automaton

    def _candidates(self, run: Run, beam: Beam, automaton: Phrases) -> list[Hypothesis]:
        """Children of what runs, best first."""
        rows = torch.stack([log_p(run, h) for h in beam.running])
        for place, h in enumerate(beam.running):
            run.stats.constraint_checks += 1
            possible = automaton.within(h.state, run.max_tokens - len(h.tokens)).to(rows.device)
            rows[place].masked_fill_(~possible, float("-inf"))
        before = torch.tensor([h.score for h in beam.running], device=rows.device)[:, None]
        total = rows + before
        width = rows.shape[1]
        places = set(total.flatten().topk(min(beam.reach, total.numel())).indices.tolist())
        for number, h in enumerate(beam.running):
            now = automaton.progress(h.state)
            own, _ = automaton.moves(h.state)
            places |= {number * width + t for t, s in own.items() if automaton.progress(s) > now}
            places.add(number * width + int(total[number].argmax()))
        flat = total.flatten()
        found = []
        for place in sorted(places, key=lambda place: (-float(flat[place]), place)):
            if float(flat[place]) == float("-inf"):
                break
            parent, token = beam.running[place // width], place % width
            state = automaton.step(parent.state, token)
            child = parent.child(run, token, float(rows[place // width, token]), score=float(flat[place]), state=state)
            if child.reason is None or (automaton.accepting(state) and satisfied(run, child)):
                found.append(child)
        return found

    def _admit(self, beam: Beam, candidates: list[Hypothesis], automaton: Phrases, banks: int) -> None:
        """Fill the banks; see the third and fourth point above."""
        in_bank: list[list[Hypothesis]] = [[] for _ in range(banks)]
        for child in candidates:
            in_bank[automaton.progress(child.state)].append(child)
        shares = equal(self.beams, banks)
        places = allocate(shares, [sum(c.reason is None for c in bank) for bank in in_bank])
        over: list[Hypothesis] = []
        going: list[Hypothesis] = []
        for bank, share, size in zip(in_bank, shares, places, strict=True):
            # Ends take part in the contest for places, as in beam search, but do not hold one.
            over += [c for c in bank[: max(share, size, 1)] if c.reason is not None]
            going += [c for c in bank if c.reason is None][:size]
        going.sort(key=lambda h: -h.score)
        beam.admit([*over, *going], among=len(over))


def equal(size: int, banks: int) -> list[int]:
    """Equal shares of the places; the last bank gets the remainder."""
    return [size // banks] * (banks - 1) + [size - size // banks * (banks - 1)]


def allocate(shares: list[int], available: list[int]) -> list[int]:
    """Places of every bank, given how many candidates each has: what one cannot use is passed on."""
    places = list(shares)
    for _ in range(2):  # once for the banks themselves, once for what the first passes to the last
        for bank in reversed(range(len(places))):
            surplus = max(places[bank] - available[bank], 0)
            places[bank] -= surplus
            places[bank - 1] += surplus
    return [min(place, there) for place, there in zip(places, available, strict=True)]
