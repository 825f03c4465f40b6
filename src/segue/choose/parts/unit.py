"""Units: where one proposal ends, so that the same driver grows tokens, steps, segments, sentences or whole answers.

token       after every token
step        after a token with a line break in it
sentence    after a full stop, question or exclamation mark (and what closes quotes or brackets behind it), or a line
            break
entropy     where the model is unsure how to go on (CARDS, arXiv:2406.16306, section 4.1): before a next token whose
            distribution has an entropy of at least `limit` nats
whole       at the end of the answer
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from segue.choose.parts.hypothesis import Hypothesis, advance, prompt_of
from segue.models.run import Decoder, Run
from segue.models.warp import Target

NAMES = ("token", "step", "sentence", "entropy", "whole")
MEASURES = ("entropy", "doubt", "evidential")
_CLOSED = re.compile("[.!?\N{HORIZONTAL ELLIPSIS}。！？][\"'”’»)\\]]*\\s*$")
Draw = Callable[[Hypothesis], Hypothesis | None]  # a child by one token; None where nothing may follow


@dataclass(frozen=True)
class Unit:
    """Ends where its kind says, but not before `least` tokens, and at `most` of them at the latest (0: no limit). The
    end of the text ends every unit."""

    kind: str = "token"
    least: int = 1
    most: int = 0
    limit: float = 3.0  # of `entropy`: what the measure has to reach
    measure: str = "entropy"  # of `entropy`: in nats; doubt (1 - max p); evidential (V / sum of max(0, logit) + 1)
    marks: tuple[int, ...] = ()  # of `step` and `sentence`: token ids that end it as well, for want of a tokenizer

    def __post_init__(self) -> None:
        if self.kind not in NAMES:
            near = difflib.get_close_matches(str(self.kind), NAMES, n=1, cutoff=0.4)
            raise ValueError(
                f"unit={self.kind!r} is not known: " + (f"did you mean {near[0]}?" if near else ", ".join(NAMES))
            )
        if self.least < 1 or (self.most and self.most < self.least) or self.most < 0:
            raise ValueError(
                f"least={self.least}, most={self.most} is not allowed: at least 1 token, and most not below it "
                "(0 for no limit)"
            )
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r} is not allowed: {', '.join(MEASURES)}")

    def ends(self, run: Run, tokens: Seq[int], start: int, row: Tensor) -> bool:
        """Whether a unit that began behind `start` tokens of an output ends with its last one, behind which the model's
        raw logits are `row` (V,)."""
        length = len(tokens) - start
        if self.most and length >= self.most:
            return True
        return length >= self.least and self._over(run, tokens, start, row)

    def _over(self, run: Run, tokens: Seq[int], start: int, row: Tensor) -> bool:
        if self.kind in ("token", "whole"):
            return self.kind == "token"
        if self.kind == "entropy":
            return uncertainty(row, self.measure) >= self.limit
        if tokens[-1] in self.marks:
            return True
        if run.lm.tokenizer is None:
            if self.marks:
                return False
            raise ValueError(
                f"unit={self.kind!r} looks for its end in the text, and {run.lm.name} has no tokenizer: give marks "
                "(token ids), or take the unit token, entropy or whole"
            )
        if "\n" in run.lm.decode([tokens[-1]]):
            return True
        return self.kind == "sentence" and _CLOSED.search(run.lm.decode(tokens[start:])) is not None


def uncertainty(row: Tensor, measure: str = "entropy") -> float:
    """How unsure raw logits (V,) are about the next token, by one of `MEASURES`."""
    row = row.double()
    if measure == "evidential":
        return row.shape[0] / float((row.clamp(min=0) + 1).sum())
    logp = row.log_softmax(-1)
    if measure == "doubt":
        return 1 - float(logp.max().exp())
    return -float((logp.exp() * logp.clamp(min=-1e30)).sum())  # 0 log 0 is 0


def sampling(run: Run, target: Target) -> Draw:
    """Draws from the request's distribution `target`, one token at a time. Children carry the log-probabilities of the
    model itself, as answers of rerankers do."""

    def draw(parent: Hypothesis) -> Hypothesis | None:
        assert parent.row is not None
        token = run.chance.index(target.p(parent.row, [*prompt_of(run), *parent.tokens]))
        constraint = run.constraint
        if constraint is not None and not bool(constraint.mask(tuple(parent.tokens))[token]):
            return None  # something is left to draw where nothing is allowed
        return parent.child(run, token, float(parent.row.double().log_softmax(-1)[token]))

    return draw


def extend(run: Run, starts: Seq[Hypothesis], unit: Unit, draw: Draw) -> Decoder[list[Hypothesis | None]]:
    """Grow each of these by one unit, side by side: every step is one forward for all. What ended before stays as it
    is; None stands where a text came to a dead end.

    The pasts of the starts are taken over: a start that is named several times is forked, and one that shall be kept is
    to be forked by the caller (`Hypothesis.fork`). A unit that ends within the text has its last token read.
    """
    grown: list[Hypothesis | None] = list(starts)
    going = [i for i, start in enumerate(starts) if start.reason is None]
    while going:
        parents = [h for i in going if (h := grown[i]) is not None]
        children = [draw(parent) for parent in parents]
        for i, child in zip(going, children, strict=True):
            grown[i] = child
        alive = [(i, c) for i, c in zip(going, children, strict=True) if c is not None and c.reason is None]
        yield from advance(run, [child for _, child in alive])
        for parent in parents:
            parent.release()
        going = []
        for i, child in alive:
            assert child.row is not None
            if not unit.ends(run, child.tokens, len(starts[i].tokens), child.row):
                going.append(i)
    for one in grown:
        if one is not None and one.reason is not None:
            one.parent = None
    return grown
