"""DAEMON: of all distributions whose expected metrics are those of human text, the one nearest to the model.

1. Metrics f_k (repetition, diversity, information, coherence) have means F_k over human texts. The q nearest to the
   model p in KL(q || p) with E_q[f] = F is p_mu(x) = p(x) exp(-mu . f(x)) / Z.
2. mu is fitted once per domain on the model's own samples, where the convex dual log E_p[exp(-mu . f)] + mu . F is
   smallest (`segue daemon fit`); each prompt's samples are tilted for themselves, as they are in decoding.
3. To decode, draw M answers from the proposal q: the model at tau times the request's temperature.
4. Weigh each by w = p(x) / q(x) exp(-mu . f(x)).
5. Give one of them, drawn with probability w / sum of w (sampling, importance resampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from segue.card import Card, Claim, Paper, SameDistribution, SameTarget
from segue.choose.parts import energy as energies
from segue.choose.parts import rerank
from segue.choose.parts.energy import Energy
from segue.choose.parts.rerank import Drafter, deliver, draw
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class Daemon:
    """Texts that repeat, vary and inform as much as human ones do, otherwise as the model writes."""

    card = Card(
        paper=Paper(id="2310.01041", title="Language Model Decoding as Direct Metrics Optimization", year=2023),
        claim=Claim(
            value=None, unit="none", baseline="sampling", setting="metrics nearest to human, GPT-2 XL, OPT-6.7B"
        ),
        exact=(SameTarget(target="daemon"),),
        departs="mu by the convex dual, each prompt normalised for itself, instead of Adam on the relative error; "
        "information is the log of the paper's; M and tau as far as secondary sources give them",
        check="spec",
    )

    energy: str | Energy = ""  # file made by `segue daemon fit`; left out: the one of the embedded model
    samples: int = 25  # M, answers drawn
    tau: float = 0.98  # times the request's temperature: what they are drawn at
    inner: Drafter = "plain"  # who draws them: any method that keeps the model's distribution
    show: bool = False  # the metrics of all answers go into the trace

    def __post_init__(self) -> None:
        rerank.check(self.samples, 1.0)
        if not 0.1 <= self.tau <= 10:
            raise ValueError(f"tau={self.tau} is not allowed: from 0.1 to 10, somewhat below 1")

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time."""
        return rerank.sequences(self.inner, self.samples)

    def run(self, run: Run) -> Decoder[None]:
        energy = self.energy if isinstance(self.energy, Energy) else energies.load(self.energy, run.lm)
        promises = getattr(getattr(self.inner, "card", None), "exact", None)
        if promises is not None and not any(isinstance(promise, SameDistribution) for promise in promises):
            raise ValueError(
                f"inner={self.inner!r} is not allowed: its answers do not follow the model's distribution, so they "
                "cannot be weighed; plain and the lossless drafters do"
            )
        wished = replace(run.settings, temperature=run.settings.temperature or 1.0)  # p: what is tilted
        target = run.target
        if target.greedy:
            other = Run(run.lm, run.prompt, wished)
            target = other.target
            other.sequence.release()
        drawn = yield from draw(
            run,
            self.inner,
            self.samples,
            duplicates="tokens",
            target=target,
            proposal=replace(wished, temperature=wished.temperature * self.tau),
        )
        for one, height in zip(drawn, energy.of(run, drawn), strict=True):
            one.logw = one.log_target - one.log_proposal - height
        most = max(one.logw or 0.0 for one in drawn)
        shares = torch.tensor([one.count * math.exp((one.logw or 0.0) - most) for one in drawn], dtype=torch.float64)
        shares = shares / shares.sum()
        for one, share in zip(drawn, shares.tolist(), strict=True):
            one.score = share
        chosen = drawn[run.chance.index(shares)]
        each = shares / torch.tensor([float(one.count) for one in drawn], dtype=torch.float64)
        run.trace.append({"drawn": self.samples, "effective": round(1 / float((shares * each).sum()), 3)})
        if self.show:
            names, rows = energy.metrics, energies.measure(run, drawn, energy.metrics).tolist()
            run.trace.append({"metrics": [dict(zip(names, row, strict=True)) for row in rows]})
        rest = [one for one in drawn if one is not chosen]
        deliver(run, [chosen, *sorted(rest, key=lambda one: -one.score)])
