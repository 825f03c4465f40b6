"""CARDS: the answer is written segment by segment, and a segment that a reward does not like is written anew.

1. Draw a segment: tokens from the model until it is unsure how to go on (the next token's entropy is tau_u or more,
   after `least` tokens), so that the text so far can be judged; at most `most` tokens.
2. Let r be the reward of prompt and answer so far. After n of at most L tokens the threshold is
   r_th = min(r*, r0 + n (r* - r0) / L), where r0 = (1 - alpha) r(prompt) + alpha r*.
3. Accept the segment with probability min(1, exp((r - r_th) / beta)).
4. Otherwise only this segment is given up: draw another one from the same fork of the past. After `tries` refusals the
   best of all that were drawn is taken.
5. Repeat to the end of the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts import scorer as rewards
from segue.choose.parts.hypothesis import Hypothesis, deliver, first, satisfied
from segue.choose.parts.scorer import Reward, Scorer
from segue.choose.parts.unit import Draw, Unit, extend, sampling
from segue.models.run import Decoder, Run, side_by_side

LEVEL = "quantile:"


@dataclass(frozen=True)
class Cards:
    """Answers with a higher reward, at the price of a few segments instead of whole answers."""

    card = Card(
        paper=Paper(id="2406.16306", title="Cascade Reward Sampling for Efficient Decoding-Time Alignment", year=2024),
        claim=Claim(
            value=None,
            unit="none",
            baseline="decoding-time alignment (item-level rejection, best of n, ARGS, RAIN)",
            setting="about 70% less decoding time, over 90% win-ties in utility and safety",
        ),
        exact=(SameTarget(target="cards"),),
        departs="L is the request's max_tokens; segments are drawn with the request's own settings (released code: "
        "top-k 40, temperature 0.7); r* may be a quantile of the rewards of pilot answers, for raw values do not "
        "transfer",
        check="generate",
    )

    reward: str | Reward = "lm"  # lm, regex:PATTERN, classifier:PATH, module:function, or an object that scores
    r_star: str | float = "quantile:0.8"  # r*, a number; or that quantile of the rewards of `pilots` whole answers
    pilots: int = 8  # answers drawn first where r* is a quantile
    alpha: float = 0.5  # share of r* in the threshold's beginning r0; 1 is r* throughout
    beta: float = 0.7  # softness of the acceptance, in units of the reward
    hard: bool = False  # accept if and only if r >= r_th
    unit: str | Unit = "entropy"  # what a segment is: entropy, token, step, sentence, whole (choose/parts/unit.py)
    tau_u: float = 3.0  # nats of entropy at which a segment ends
    least: int = 4  # tokens of a segment at least
    most: int = 64  # and at most; of unit whole any number
    tries: int = 20  # refusals of one segment after which the best is taken
    samples: int = 1  # answers written side by side, each for itself; the one with the best reward is given
    temperature: float = 0.7  # at which a greedy request is sampled

    def __post_init__(self) -> None:
        rewards.named(self.reward)
        self._segment()
        self._level()
        for name in ("pilots", "tries", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not allowed: from 0 to 1")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta={self.beta} is not allowed: above 0 (or hard=True)")
        if not 1e-4 <= self.temperature <= 100:
            raise ValueError(f"temperature={self.temperature} is not allowed: from 0.0001 to 100")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold: of every answer what is accepted, the best refused segment and a new one."""
        return 1 + max(3 * self.samples, 0 if self._level() is None else self.pilots)

    def run(self, run: Run) -> Decoder[None]:
        root = yield from first(run)
        scorer = Scorer(run, rewards.named(self.reward))
        draw = sampling(run, run.sampled(self.temperature))
        level = self._level()
        goal = (yield from self._quantile(run, root, scorer, draw, level)) if level is not None else float(self.r_star)
        (begin,) = scorer.of([root])
        bar = _Bar(goal, (1 - self.alpha) * begin + self.alpha * goal, run.max_tokens)
        chains = [self._write(run, root.fork(), scorer, draw, bar, number) for number in range(self.samples)]
        root.release()
        written = yield from side_by_side(chains)
        found = [text for text in written if text is not None]
        for text in found:
            (text.score,) = scorer.of([text])
        deliver(run, sorted(found, key=lambda text: -text.score))

    def _segment(self) -> Unit:
        if isinstance(self.unit, Unit):
            return self.unit
        return Unit(self.unit, self.least, 0 if self.unit == "whole" else self.most, self.tau_u)

    def _level(self) -> float | None:
        """The quantile that stands for r*, if one does."""
        text = str(self.r_star)
        named = text.startswith(LEVEL)
        try:
            number = float(text.removeprefix(LEVEL))
        except ValueError:
            number = math.nan
        if not (0 <= number <= 1 if named else math.isfinite(number)):
            raise ValueError(f"r_star={self.r_star!r} is not allowed: a number, or quantile:Q with Q from 0 to 1")
        return number if named else None

    def _quantile(self, run: Run, root: Hypothesis, scorer: Scorer, draw: Draw, level: float) -> Decoder[float]:
        """Of the rewards of whole answers. They are drawn and given up."""
        drawn = yield from extend(run, [root.fork()] * self.pilots, Unit("whole"), draw)
        answers = [text for text in drawn if text is not None and satisfied(run, text)]
        found = scorer.of(answers)
        if not found:
            deliver(run, [])
        goal = float(np.quantile(found, level))
        tokens = sum(len(text.tokens) for text in drawn if text is not None)
        run.trace.append({"pilots": len(found), "tokens": tokens, "r_star": goal, "mean": float(np.mean(found))})
        run.stats.drafted += tokens
        return goal

    def _write(
        self, run: Run, text: Hypothesis, scorer: Scorer, draw: Draw, bar: _Bar, number: int
    ) -> Decoder[Hypothesis | None]:
        """One answer from its first segment to its end; None where every draw of a segment was a dead end."""
        while text.reason is None:
            new = yield from self._accepted(run, text, scorer, draw, bar, number)
            text.release()
            if new is None:
                return None
            run.stats.accepted += len(new.tokens) - len(text.tokens)
            text = new
        return text

    def _accepted(
        self, run: Run, text: Hypothesis, scorer: Scorer, draw: Draw, bar: _Bar, number: int
    ) -> Decoder[Hypothesis | None]:
        """The segment that is accepted behind a text, or the best one that was refused."""
        best: Hypothesis | None = None
        refused, taken = 0, False
        while not taken and refused <= self.tries:
            (new,) = yield from extend(run, [text.fork()], self._segment(), draw)
            run.stats.rounds += 1
            if new is None or (new.reason is not None and not satisfied(run, new)):
                refused += 1
                continue
            run.stats.drafted += len(new.tokens) - len(text.tokens)
            (new.score,) = scorer.of([new])
            above = new.score - bar.at(len(new.tokens))
            # The last one is not put to the test: the best of all is taken.
            taken = refused < self.tries and self._keeps(run, above)
            refused += not taken
            best, other = (new, best) if taken or best is None or new.score > best.score else (best, new)
            if other is not None:
                other.release()
        if best is not None:
            run.trace.append(
                {
                    "answer": number,
                    "tokens": len(best.tokens),  # of the answer, this segment included
                    "reward": round(best.score, 6),
                    "threshold": round(bar.at(len(best.tokens)), 6),
                    "refused": refused,
                    "accepted": taken,
                }
            )
        return best

    def _keeps(self, run: Run, above: float) -> bool:
        """Nothing is drawn where the answer is certain, so that a threshold below all rewards is plain sampling."""
        if above >= 0 or self.hard:
            return above >= 0
        return run.chance.keeps(math.exp(above / self.beta), 1.0)


@dataclass(frozen=True)
class _Bar:
    """The rising threshold."""

    goal: float  # r*
    begin: float  # r0
    length: int  # L

    def at(self, n: int) -> float:
        """After n tokens of the answer."""
        return min(self.goal, self.begin + n * (self.goal - self.begin) / self.length)
