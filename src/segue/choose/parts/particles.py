"""The particles driver: weighted texts grow side by side by one unit at a time, and the good ones are drawn again.

1. All particles start from the prompt, with weight 1.
2. Propose: each grows by one unit (choose/parts/unit.py), all in shared forwards on forks of shared pasts. Its draw may
   multiply the weight; a text that may not be gone on with has weight 0 and is dropped.
3. Weigh: what is new may be weighted once more.
4. Resample: where the effective number of particles, (sum w)^2 / sum w^2, falls below a share of their number, as many
   are drawn anew in proportion to their weights, and all have the mean weight. Expectations stay what they are.

What is left are weighted samples: for any text y the mean over all particles (those of weight 0 too) of the weight of
those that are y has the expectation that the proposals and weights give to y, whatever the number of particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from segue.choose.parts.hypothesis import Hypothesis, deliver, satisfied
from segue.choose.parts.unit import Draw, Unit, extend
from segue.models.run import Decoder, Run

Weigh = Callable[[list[Hypothesis]], Decoder[None]]  # changes `logw`


@dataclass(eq=False, slots=True)
class Cloud:
    """Particles of positive weight; a text that was drawn several times stands there as often."""

    size: int  # particles, those of weight 0 included
    living: list[Hypothesis]
    drawn: int = 0  # tokens that all particles together were grown by
    resampled: list[int] = field(default_factory=list)  # the rounds after which they were

    @property
    def total(self) -> float:
        """Log of the mean weight: the estimate of the whole mass."""
        return log_sum([h.logw for h in self.living]) - math.log(self.size)

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2."""
        logs = [h.logw for h in self.living]
        return math.exp(2 * log_sum(logs) - log_sum([2 * x for x in logs])) if logs else 0.0


def particles(
    run: Run, root: Hypothesis, size: int, unit: Unit, draw: Draw, *, resample: float = 0.5, weigh: Weigh | None = None
) -> Decoder[Cloud]:
    """Grow particles from `root` to their ends. `resample`: the share of effective particles below which they are drawn
    anew; 0 never."""
    cloud = Cloud(size, [root] * size)
    rounds = 0
    while any(h.reason is None for h in cloud.living):
        rounds += 1
        before = cloud.living
        grown = yield from extend(run, before, unit, draw)
        alive = [_counted(run, cloud, h, old) for h, old in zip(grown, before, strict=True)]
        new = [h for h, old in zip(alive, before, strict=True) if h is not None and h is not old]
        if weigh is not None and new:
            yield from weigh(new)
        cloud.living = [h for h in alive if h is not None and h.logw > -math.inf]
        for one in new:
            if one.logw == -math.inf:
                one.release()
        unfinished = any(h.reason is None for h in cloud.living)
        if unfinished and cloud.effective < resample * size:
            _resample(run, cloud)
            cloud.resampled.append(rounds)
    return cloud


def conclude(run: Run, cloud: Cloud) -> None:
    """Give out a text drawn in proportion to the weights, and all of them as candidates: `logw` of a text estimates the
    log of its mass without bias (before the logarithm), its score is its share. ConstraintError where all died."""
    texts: dict[tuple[int, ...], list[Hypothesis]] = {}
    for one in cloud.living:
        texts.setdefault(tuple(one.tokens), []).append(one)
    found = []
    for same in texts.values():
        one = same[0].fork()
        one.logw = log_sum([h.logw for h in same]) - math.log(cloud.size)
        one.score = math.exp(one.logw - cloud.total)
        found.append(one)
    if found:
        shares = torch.tensor([one.score for one in found], dtype=torch.float64)
        chosen = found[run.chance.index(shares)]
        rest = [one for one in found if one is not chosen]
        found = [chosen, *sorted(rest, key=lambda one: -one.score)]
    deliver(run, found)


def log_sum(logs: list[float]) -> float:
    """log of the sum of exponentials; -inf of nothing."""
    most = max(logs, default=-math.inf)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs)) if most > -math.inf else most


def _counted(run: Run, cloud: Cloud, new: Hypothesis | None, old: Hypothesis) -> Hypothesis | None:
    """The particle, unless it ended in a text that is not what was asked for."""
    if new is None:
        cloud.drawn += 1
        return None
    cloud.drawn += len(new.tokens) - len(old.tokens)
    if new.reason is not None and new is not old and not satisfied(run, new):
        return None
    return new


def _resample(run: Run, cloud: Cloud) -> None:
    """Residual resampling (Liu and Chen 1998): the whole part of each expected count for certain, what remains drawn in
    proportion to the fractions."""
    mean = cloud.total
    counts = [math.exp(h.logw - mean) for h in cloud.living]  # expected; they sum to the number of particles
    picks = [int(count + 1e-12) for count in counts]
    rest = torch.tensor([max(c - n, 0.0) for c, n in zip(counts, picks, strict=True)], dtype=torch.float64)
    for _ in range(cloud.size - sum(picks)):
        picks[run.chance.index(rest)] += 1
    kept = []
    for one, count in zip(cloud.living, picks, strict=True):
        if not count:
            one.release()
        one.logw = mean
        kept += [one] * count
    cloud.living = kept
