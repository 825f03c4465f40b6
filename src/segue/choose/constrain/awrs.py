"""AWRS: samples of a constraint by rejection, with weights that undo what choosing token by token did to them.

1. Draw a token x from the model's own p, check it, and draw another without replacement while it is refused. The one
   that passes has the law of p restricted to what is allowed, and no mask over the vocabulary was built.
2. One check more, or a second acceptance, gives an unbiased estimate w of Z, the allowed share of p: E[w 1(x)] = p(x).
3. N particles are written this way side by side; the weight of each is the product of its w.
4. Where few particles carry the weight (effective number below `resample` N), draw N anew in proportion to it.
5. Give one of the texts, drawn in proportion to the weights: for N to infinity it has the law p(y | constraint), which
   masking token by token has not. The mean weight estimates the probability that p satisfies the constraint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.hypothesis import Hypothesis, first, prompt_of
from segue.choose.parts.particles import conclude, particles
from segue.choose.parts.unit import Draw, Unit
from segue.data import ConstraintError
from segue.models.run import Decoder, Run
from segue.ops import rejection

ESTIMATORS = ("auto", "recursive", "geometric", "none")


@dataclass(frozen=True)
class Awrs:
    """Constrained samples from the model's distribution over whole texts, at a few checks a token."""

    card = Card(
        paper=Paper(
            id="2504.05410",
            title="Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling",
            year=2025,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="masks over the vocabulary, and sampling that is constrained token by token",
            setting="faster at equal accuracy: text-to-SQL, molecules, goals, patterns, JSON",
        ),
        exact=(SameTarget(target="awrs"),),
        departs="after `patience` refusals of one token the mask is asked for, which bounds the walk and leaves "
        "expectations as they are; residual resampling; a text that is accepted at the length limit needs no end of "
        "text there",
        check="constrained",
    )

    particles: int = 16  # N, texts that are written side by side
    estimator: str = "auto"  # of w: recursive, geometric, auto (by the largest p); none: weight 1, choosing by token
    accepts: int = 2  # acceptances that the geometric one waits for; more (then always geometric) vary less, cost more
    resample: float = 0.5  # share of effective particles below which they are drawn anew; 0 never
    patience: int = 16  # refusals of one token after which all allowed tokens are asked for at once; 0 never
    temperature: float = 1.0  # at which a greedy request is sampled

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles={self.particles} is not allowed: at least 1")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator={self.estimator!r} is not allowed: {', '.join(ESTIMATORS)}")
        if self.accepts < 2:
            raise ValueError(f"accepts={self.accepts} is not allowed: at least 2, or nothing can be estimated")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample={self.resample} is not allowed: from 0 (never) to 1")
        if self.patience < 0:
            raise ValueError(f"patience={self.patience} is not allowed: at least 1, or 0 for no limit")
        if not 1e-4 <= self.temperature <= 100:
            raise ValueError(f"temperature={self.temperature} is not allowed: from 0.0001 to 100")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time."""
        return self.particles

    def run(self, run: Run) -> Decoder[None]:
        if run.constraint is None:
            raise ConstraintError(
                "awrs samples under a constraint: give json_schema, regex, grammar, choices or constraint; without one "
                "method plain samples"
            )
        root = yield from first(run)
        cloud = yield from particles(run, root, self.particles, Unit("token"), self._draws(run), resample=self.resample)
        effective, total = cloud.effective, cloud.total if cloud.living else -math.inf
        conclude(run, cloud)
        run.trace.append(
            {
                "particles": self.particles,
                "alive": len(cloud.living),
                "effective": round(effective, 3),
                "resampled": cloud.resampled,
                "log_mass": round(total, 6),  # estimate of log p(constraint); not with estimator none
                "tokens_drawn": cloud.drawn,
                "checks_per_token": round(run.stats.constraint_checks / cloud.drawn, 3),
            }
        )

    def _draws(self, run: Run) -> Draw:
        """One token of a particle, its weight changed by the estimate."""
        target = run.sampled(self.temperature).free
        constraint = run.constraint
        assert constraint is not None

        def draw(parent: Hypothesis) -> Hypothesis | None:
            output = tuple(parent.tokens)

            def check(token: int) -> bool:
                return constraint.permits(output, token)

            def mask() -> Tensor:
                return constraint.mask(output)

            assert parent.row is not None
            p = target.p(parent.row, [*prompt_of(run), *output])
            walk = mask, self.patience
            if self.estimator == "none":
                token, weight = rejection.first(p, check, run.chance, *walk)
            elif self._geometric(float(p.max())):
                token, weight = rejection.geometric(p, check, run.chance, self.accepts, *walk)
            else:
                token, weight = rejection.recursive(p, check, run.chance, *walk)
            if token is None or weight <= 0:
                return None
            child = parent.child(run, token, float(parent.row.double().log_softmax(-1)[token]))
            child.logw = parent.logw + math.log(weight)
            return child

        return draw

    def _geometric(self, most: float) -> bool:
        if self.estimator == "auto":
            return self.accepts > 2 or most > rejection.PEAKED
        return self.estimator == "geometric"
