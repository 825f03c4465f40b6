"""Phi-decoding: every step of an answer is judged by how the answer would go on behind it.

1. From each of M beams draw N candidate steps (to a line break). A candidate's s is the mean log-probability of its
   tokens; those with s at or below the mean minus `sigma` standard deviations are pruned. If fewer than M are left, the
   pruned ones are drawn back in by softmax(s / `sharpness`).
2. Simulate the rest of the answer behind each candidate: F is the mean log-probability of what was written, and the
   advantage A = F - F of the beam that the step came from.
3. Cluster these endings (TF-IDF, k-means). With C the share of a candidate's cluster among all, its weight is
   w = (softmax(A / `sharpness`) + softmax(C)) / 2.
4. Draw M of the candidates by w, without replacement: they are the new beams, and keep their F.
5. After `least` steps, stop looking ahead where the chosen steps are all the same, or where one cluster holds more than
   `agreed` of the endings; after `foresights` steps in any case.
6. Finish every beam, divide the answers into two clusters, and draw one of the larger by softmax(A / `sharpness`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.cluster import clustered
from segue.choose.parts.foresight import WHOLE, Path, look, shown, words
from segue.choose.parts.hypothesis import deliver, first, satisfied
from segue.choose.parts.unit import Draw, Unit, extend, sampling
from segue.models.run import Decoder, Run
from segue.models.warp import Target

FINAL = 2  # clusters of finished answers


@dataclass(frozen=True)
class PhiDecoding:
    """Explores where endings differ, exploits where they are likely, and stops where they agree."""

    card = Card(
        paper=Paper(
            id="2503.13288",
            title="phi-Decoding: Adaptive Foresight Sampling for Balanced Inference-Time Exploration and Exploitation",
            year=2025,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="chain of thought, tree of thoughts, MCTS, predictive decoding",
            setting="seven reasoning benchmarks: more correct answers at lower cost",
        ),
        exact=(SameTarget(target="phi_decoding"),),
        departs="words of one character count in TF-IDF; a step that ends the answer is its own ending, and a finished "
        "beam stays a candidate with advantage 0; the released code clusters only endings with A above 0 (`rising`)",
        check="spec",
    )

    beams: int = 4  # M, texts that are kept from step to step
    rollouts: int = 4  # N, candidate steps drawn from each of them
    foresights: int = 8  # T, steps at most that are chosen by looking ahead; 0: only whole answers are compared
    unit: str | Unit = "step"  # what a step is: step (a line), sentence, entropy, token, or a Unit object
    tau: float = 0.6  # times the request's temperature (1 where it is greedy): what steps are drawn at; their rest at 1
    sigma: float = 1.0  # standard deviations below the mean at which a candidate step is pruned
    sharpness: float = 0.1  # temperature of the softmax over advantages
    clusters: int = 3  # K, of simulated endings
    least: int = 4  # steps before it may stop looking ahead
    agreed: float = 0.7  # share of the endings in one cluster above which it stops; 1: never
    rising: bool = False  # only endings with an advantage above 0 are clustered and drawn from, if there are M of them
    show: bool = False  # all steps, endings and weights go into the trace

    def __post_init__(self) -> None:
        least = {"beams": 1, "rollouts": 1, "foresights": 0, "clusters": 1, "least": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {lowest}")
        if not 0.01 <= self.tau <= 10:
            raise ValueError(f"tau={self.tau} is not allowed: from 0.01 to 10, below 1 for likely steps")
        if not 0 <= self.sigma <= 1e6:
            raise ValueError(f"sigma={self.sigma} is not allowed: at least 0 (a large one prunes nothing)")
        if not 1e-3 <= self.sharpness <= 1e6:
            raise ValueError(f"sharpness={self.sharpness} is not allowed: from 0.001 to 1000000 (a large one is blind)")
        if not 0 < self.agreed <= 1:
            raise ValueError(f"agreed={self.agreed} is not allowed: a share above 0 and at most 1 (1 never stops)")
        if not isinstance(self.unit, Unit):
            Unit(self.unit)

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time: every candidate step, and its rest."""
        return 1 + self.beams * (1 + 2 * self.rollouts * (self.foresights > 0))

    def run(self, run: Run) -> Decoder[None]:
        wished = run.settings.temperature or 1.0
        draw_step, draw_rest = (sampling(run, _target(run, t)) for t in (wished * self.tau, wished))
        root = yield from first(run)
        beams = [Path(root)] * self.beams
        for depth in range(1, self.foresights + 1):
            if not beams or all(beam.text.reason is not None for beam in beams):
                break
            beams, agreed = yield from self._round(run, beams, depth, draw_step, draw_rest)
            if agreed and depth >= self.least:
                break
        yield from self._finish(run, beams, draw_rest)

    def _round(
        self, run: Run, beams: list[Path], depth: int, draw_step: Draw, draw_rest: Draw
    ) -> Decoder[tuple[list[Path], bool]]:
        """The next beams, and whether their endings agree."""
        origins = [beam for beam in beams if beam.text.reason is None for _ in range(self.rollouts)]
        unit = self.unit if isinstance(self.unit, Unit) else Unit(self.unit)
        grown = yield from extend(run, [beam.text for beam in origins], unit, draw_step)
        steps = [
            Path(text, len(beam.text.tokens), beam.value)
            for beam, text in zip(origins, grown, strict=True)
            if text is not None and (text.reason is None or satisfied(run, text))
        ]
        means = [path.likelihood for path in steps]
        kept = self._prune(run, means)
        for path in (path for i, path in enumerate(steps) if i not in kept):
            path.text.release()
        looked = yield from look(run, [steps[i] for i in kept], draw_rest)
        paths = looked + [beam.stay() for beam in beams if beam.text.reason is not None]
        labels, weights = self._weigh(run, paths)
        chosen = _drawn(run, weights, self.beams)
        for path in (path for i, path in enumerate(paths) if i not in chosen):
            path.text.release()
        said = {tuple(paths[i].step) for i in chosen}
        shares = [labels.count(label) / (len(labels) - labels.count(-1)) for label in set(labels) - {-1}]
        most = max(shares, default=0.0)
        run.trace.append({"depth": depth, "steps": len(steps), "pruned": len(steps) - len(kept), "share": most})
        if self.show:
            drawn = [{"tokens": p.text.tokens, "begin": p.begin, "logp": s} for p, s in zip(steps, means, strict=True)]
            run.trace[-1] |= {"drawn": drawn, "kept": kept, "chosen": chosen}
            run.trace[-1]["paths"] = shown(paths, labels, weights)
        return [paths[i] for i in chosen], most > self.agreed or len(chosen) > 1 == len(said)

    def _prune(self, run: Run, means: list[float]) -> list[int]:
        """The candidate steps that are worth looking behind, ascending."""
        if not means:
            return []
        s = torch.tensor(means, dtype=torch.float64)
        floor = float(s.mean() - self.sigma * s.std(correction=0))
        kept = [i for i, mean in enumerate(means) if mean > floor + 1e-9]  # equal up to rounding is not above
        out = [i for i in range(len(means)) if i not in kept]
        if len(kept) < self.beams and out:
            back = _drawn(run, _softmax([means[i] / self.sharpness for i in out]), self.beams - len(kept))
            kept += [out[i] for i in back]
        return sorted(kept)

    def _weigh(self, run: Run, paths: list[Path]) -> tuple[list[int], list[float]]:
        """The cluster of each path's ending, -1 where it takes no part, and its weight w."""
        advantages = [path.advantage for path in paths]
        texts = [words(run, path.ending) for path in paths]
        among = [i for i, a in enumerate(advantages) if not self.rising or (a > 0 and texts[i].strip())]
        labels, weights = [-1] * len(paths), [0.0] * len(paths)
        if len(among) < min(self.beams, len(paths)):
            return labels, _softmax([a / self.sharpness for a in advantages])
        found = clustered([texts[i] for i in among], self.clusters)
        likely = _softmax([advantages[i] / self.sharpness for i in among])
        common = _softmax([found.count(label) / len(found) for label in found])
        for i, label, w_a, w_c in zip(among, found, likely, common, strict=True):
            labels[i], weights[i] = label, (w_a + w_c) / 2
        return labels, weights

    def _finish(self, run: Run, beams: list[Path], draw: Draw) -> Decoder[None]:
        """Write all answers to their end, and give out one of those that most of them agree with."""
        ends = yield from extend(run, [beam.text for beam in beams], WHOLE, draw)
        answers: list[Path] = []
        for beam, end in zip(beams, ends, strict=True):
            if end is not None and satisfied(run, end):
                answers.append(beam.stay())
                if beam.text.reason is None:
                    answers[-1].saw(end)
                answers[-1].text = end
        if answers:
            answers = self._ranked(run, answers)
        deliver(run, [path.text for path in answers])

    def _ranked(self, run: Run, answers: list[Path]) -> list[Path]:
        """The answers with the chosen one in front; their scores are the probabilities with which it was drawn."""
        labels = clustered([words(run, path.ending) for path in answers], FINAL)
        groups = [[i for i, label in enumerate(labels) if label == group] for group in set(labels)]
        # Of two equal ones that with the best ending.
        larger = max(groups, key=lambda group: (len(group), max(answers[i].advantage for i in group)))
        weights = _softmax([answers[i].advantage / self.sharpness for i in larger])
        for i, path in enumerate(answers):
            path.text.score = weights[larger.index(i)] if i in larger else 0.0
        chosen = larger[_drawn(run, weights, 1)[0]]
        run.trace.append({"answers": len(answers), "largest": len(larger)})
        if self.show:
            run.trace[-1] |= {"paths": shown(answers, labels, [p.text.score for p in answers]), "chosen": chosen}
        rest = [path for i, path in enumerate(answers) if i != chosen]
        return [answers[chosen], *sorted(rest, key=lambda path: (-path.text.score, -path.advantage))]


def _target(run: Run, temperature: float) -> Target:
    """The request's distribution at another temperature."""
    other = Run(run.lm, run.prompt, replace(run.settings, temperature=temperature))
    other.sequence.release()
    return other.target


def _drawn(run: Run, weights: list[float], count: int) -> list[int]:
    """So many places drawn by weight without replacement, ascending; all where there are no more."""
    if count >= len(weights):
        return list(range(len(weights)))
    left = torch.tensor(weights, dtype=torch.float64)
    possible = int((left > 0).sum())
    if possible < count:  # what a softmax rounded to nothing
        left = left.clamp(min=1e-300)
    chosen = []
    for _ in range(count):
        chosen.append(run.chance.index(left))
        left[chosen[-1]] = 0
    return sorted(chosen)


def _softmax(values: list[float]) -> list[float]:
    found: list[float] = torch.tensor(values, dtype=torch.float64).softmax(-1).tolist()
    return found
