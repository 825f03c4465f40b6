"""The best-first driver: the most promising text of all that were ever seen goes on next, wherever it stands.

Open texts wait in a heap. A step takes up the best of them (as many as there are lanes), reads their last tokens in one
forward and makes children of them. Methods say what a text is worth, which children it has, and may turn a text away
when its turn comes (because it has merged with another one).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from segue.choose.parts.hypothesis import Hypothesis, log_p, satisfied
from segue.choose.parts.pasts import Pasts
from segue.models.run import Decoder, Run

SPARE = 8  # pasts that are kept beside those of the lanes


@dataclass(eq=False, slots=True)
class BestFirst:
    """One search. `expand` makes the children of a text whose row is known, best first."""

    run: Run
    expand: Callable[[Hypothesis], list[Hypothesis]]
    budget: int  # texts whose last token is read (model calls), the prompt apart
    results: int | None = None  # stop when so many texts are finished; None: only the budget ends it
    lanes: int = 1  # texts read together
    dive: bool = False  # a text that was read goes on with its best child until it ends; only the others wait
    worth: Callable[[Hypothesis], float] = lambda hypothesis: hypothesis.score
    admit: Callable[[Hypothesis], bool] = lambda hypothesis: True  # asked once of a text, when its turn comes
    opening: Hypothesis | None = None  # of a dive: the text that is followed to its end in any case, the greedy one
    finished: list[Hypothesis] = field(default_factory=list)  # in the order in which they were found
    calls: int = 0
    most_open: int = 0  # texts that waited at a time
    _heap: list[tuple[float, int, Hypothesis]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def search(self, root: Hypothesis) -> Decoder[None]:
        """Search from a text whose row is known (what `first` gives).

        With a worth that no child exceeds (a sum of log-probabilities) and without `dive`, finished texts are found in
        the order of their worth, whatever the lanes. With `dive` the first text is followed to its end even beyond the
        budget: it is the greedy one, and there is an answer.
        """
        pasts = Pasts(self.run, self.lanes + SPARE)
        self.opening = root if self.dive else None
        active = self._children(root)
        while True:
            left = self.budget - self.calls
            self._take_up(active, min(self.lanes, left))
            active = active[: max(left, int(self.opening in active))]
            if not active or self._enough():
                break
            yield from pasts.read(active)
            self.calls += len(active)
            active = [child for hypothesis in active for child in self._children(hypothesis)]
        pasts.release()

    def _children(self, parent: Hypothesis) -> list[Hypothesis]:
        """Make the children of a text; gives the one that goes on at once, if there is one."""
        children = [c for c in self.expand(parent) if c.reason is None or satisfied(self.run, c)]
        parent.row = None  # a row of every text ever read would be a lot
        for child in children:
            child.parent = None
        going = []
        if parent is self.opening:
            self.opening = children[0] if children else None
        if self.dive and children:
            going = [c for c in children[:1] if self._admitted(c)]
            children = children[1:]
        for child in children:
            self._push(child)
        return going

    def _take_up(self, active: list[Hypothesis], room: int) -> None:
        """Fill up what is read next from the heap, in place; finished texts take no room."""
        while self._heap and not self._enough():
            best = self._heap[0][2]
            if best.reason is None:
                if len(active) >= room:
                    return
            elif active and not self.dive:
                return  # what is about to be read may have better ones behind it
            heapq.heappop(self._heap)
            if self._admitted(best):
                active.append(best)

    def _admitted(self, hypothesis: Hypothesis) -> bool:
        """Whether a text whose turn has come is to be read; a finished one is kept instead."""
        if not self.admit(hypothesis):
            return False
        if hypothesis.reason is not None:
            self.finished.append(hypothesis)
            return False
        return True

    def _enough(self) -> bool:
        return self.results is not None and len(self.finished) >= self.results

    def _push(self, hypothesis: Hypothesis) -> None:
        heapq.heappush(self._heap, (-self.worth(hypothesis), next(self._order), hypothesis))
        self.most_open = max(self.most_open, len(self._heap))


def likeliest(run: Run, hypothesis: Hypothesis, count: int) -> list[Hypothesis]:
    """The `count` likeliest children of a text whose row is known, best first; none that nothing allows."""
    values, tokens = log_p(run, hypothesis).topk(min(count, run.lm.vocab_size))
    found = zip(tokens.tolist(), values.tolist(), strict=True)
    return [hypothesis.child(run, token, logp) for token, logp in found if logp > float("-inf")]
