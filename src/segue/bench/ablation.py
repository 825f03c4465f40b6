"""Ablations by counting: what methods save, prompt by prompt, and by how much one of them saves more than another.

1. Prompts are decoded side by side, and everything is counted for each of them. No clock is read, unless a method that
   chooses how much it drafts reads one: its model should say that every forward costs the same (models.cost.FLAT).
2. Of every prompt COUNTS are kept. A figure is the ratio of two of them, each summed over prompts (FIGURES).
3. A pair of arms is judged by the difference of one figure and its 95% interval, by a paired bootstrap over prompts:
   on all prompts, and apart on those that plain decoding answers with a loop, which flatters every drafter.
4. Right by place is another figure: the network's share of right guesses behind texts that are given to it, token by
   token, so that a wrong guess spoils no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.bench.bootstrap import Floats, draws, interval, paired, ratios
from segue.data import DraftTree, Scores, Settings, Want
from segue.models.engine import Engine
from segue.models.heads import DraftNetwork
from segue.models.heads.blockwise import ParallelHeads
from segue.models.heads.context import Attending
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Run

COUNTS = (
    "tokens",  # behind the first one, which reading the prompt gives
    "forwards",  # of the whole target, those that read the prompt apart
    "depth",  # forwards' worth of layers that ran one behind the other, those of drafts by the target's own among them
    "rounds",
    "drafted",
    "accepted",
    "passes",  # of the trained network
    "distinct",  # drafted tokens, of those that are equal at one depth of a tree one
    "repeated",  # drafted tokens that are equal to the one before them
)
FIGURES = {
    "tokens per forward": ("tokens", "forwards"),
    "tokens per depth": ("tokens", "depth"),
    "drafted per round": ("drafted", "rounds"),
    "passes per round": ("passes", "rounds"),
    "distinct per round": ("distinct", "rounds"),
    "repeated share": ("repeated", "drafted"),
    "equal share": ("same", "written"),  # these two with the counts of bench/likeness.py
    "nats per token": ("nats", "written"),
}
GROUPS = ("all", "looping", "others")


@dataclass
class Tally:
    """What was counted of one arm: every count (P,) by its name, and the answers."""

    counts: dict[str, list[float]]
    answers: list[list[int]] = field(default_factory=list)

    def figure(self, name: str, prompts: Sequence[int] | None = None) -> float:
        """A figure over all prompts, or over some of them; 0 where nothing was counted."""
        above, below = (np.array(self.counts[part]) for part in parts(name))
        chosen = slice(None) if prompts is None else list(prompts)
        under = float(below[chosen].sum())
        return float(above[chosen].sum()) / under if under else 0.0


def parts(figure: str) -> tuple[str, str]:
    """The two counts of a figure: of FIGURES, or "right NAME"."""
    return FIGURES.get(figure) or (figure, figure.replace("right", "asked", 1))


def tally(
    lm: LM,
    method: Any,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    network: DraftNetwork | None = None,
    weight: float = 0.0,
    together: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tally:
    """Decode the prompts, at most `together` at a time, and count. `network`: the trained one whose passes are counted,
    each also as `weight` forwards in the depth."""
    engine, jobs = Engine(max_running=together), []
    passes = _Passes(network, lm)
    seen: list[dict[str, float]] = [dict.fromkeys(COUNTS, 0) for _ in prompts]
    for prompt, mine in zip(prompts, seen, strict=True):
        run = Run(lm, list(prompt), settings)
        jobs.append(engine.add(run, _watched(method.run(run), run, mine, passes)))
    with passes:
        for _ in engine.steps():
            progress(sum(job.finished for job in jobs), len(jobs))
        engine.drain(jobs)
    for job, mine in zip(jobs, seen, strict=True):
        stats = job.run.stats
        mine |= {"tokens": stats.tokens - 1, "rounds": stats.rounds, "accepted": stats.accepted}
        mine["forwards"] = stats.target_forwards - stats.prefill_forwards
        mine["depth"] = round(mine["depth"] + weight * mine["passes"], 4)
    return Tally({name: [mine[name] for mine in seen] for name in COUNTS}, [job.run.output for job in jobs])


class _Passes:
    """Counts a network's passes while it is entered, for the run whose decoder is at work. Layers that attend mostly
    draft in another form than they learn in; there every pass asks for logits once."""

    def __init__(self, network: DraftNetwork | None, lm: LM) -> None:
        self.network, self.lm = network, lm
        self.mine: dict[str, float] = {}

    def __enter__(self) -> None:
        self._undo = ExitStack()
        if self.network is not None:
            self._undo.callback(self.network.register_forward_hook(self._one).remove)
        if isinstance(self.network, Attending):
            lean = self.network.lean(self.lm)
            asked = lean.logits

            def counted(*given: Any) -> Tensor:
                self._one()
                logits: Tensor = asked(*given)
                return logits

            lean.logits = counted
            self._undo.callback(delattr, lean, "logits")

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _one(self, *_: Any) -> None:
        self.mine["passes"] += 1


def _watched(decoder: Decoder[None], run: Run, seen: dict[str, float], passes: _Passes) -> Decoder[None]:
    """A run's decoder; the trees that it has verified, the layers that it runs and the passes of its network are
    counted."""
    scores: Scores | None = None
    while True:
        passes.mine = seen
        try:
            request = next(decoder) if scores is None else decoder.send(scores)
        except StopIteration:
            return
        if isinstance(request, Forward) and request.sequence.lm is run.lm:
            layers = request.want.layers
            seen["depth"] += 1 if layers is None else len(layers) / run.lm.layers
            if not request.sequence.drafts:
                _look(request.tree, seen)
        scores = yield request


def _look(tree: DraftTree, seen: dict[str, float]) -> None:
    nodes = [n for n in range(1, len(tree)) if not tree.scored_only[n]]
    seen["drafted"] += len(nodes)
    seen["distinct"] += len({(tree.depths[n], tree.tokens[n]) for n in nodes})
    seen["repeated"] += sum(tree.tokens[n] == tree.tokens[tree.parents[n]] for n in nodes)


@torch.inference_mode()
def right(
    lm: LM, network: DraftNetwork, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> dict[str, list[float]]:
    """Counts "right PLACE" and "asked PLACE" of a network behind given answers; place 1 is behind the pending token."""
    found: dict[str, list[float]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *answer]
        own = torch.arange(len(ids))[None] >= len(prompt)
        states = {state: rows[None] for state, rows in _states(lm, ids, network.reads).items()}
        marks = network.learn(lm, Lesson(torch.tensor([ids]), own, states))
        for place, (hits, count) in enumerate(zip(marks.hits, marks.counts, strict=True), 1):
            found.setdefault(f"right {place}", []).append(hits)
            found.setdefault(f"asked {place}", []).append(count)
    return found


@torch.inference_mode()
def oracle(
    lm: LM,
    heads: ParallelHeads,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    top: int,
) -> Tally:
    """What heads would save if of the `top` likeliest tokens of each the right one were always drafted: no way to put
    their tokens together can save more (arXiv:2404.09221). Replayed on given answers."""
    found = Tally({name: [0] * len(prompts) for name in COUNTS}, [list(answer) for answer in answers])
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *answer]
        (states,) = _states(lm, ids, heads.reads).values()
        rounds, pending = 0, len(prompt)
        while pending < len(ids) - 1:
            ahead = ids[pending + 1 : pending + 1 + heads.shape.heads]
            guesses = heads.guesses(lm, states[pending - 1], len(ahead)).topk(top).indices.tolist()
            hits = [token in row for token, row in zip(ahead, guesses, strict=True)]
            pending += 1 + (hits.index(False) if False in hits else len(hits))
            rounds += 1
        for name in ("forwards", "rounds", "depth"):
            found.counts[name][number] = rounds
        found.counts["tokens"][number] = len(answer) - 1
    return found


def _states(lm: LM, ids: list[int], reads: tuple[int, ...]) -> dict[int, Tensor]:
    """The states (T, D) behind the tokens of a text."""
    sequence = lm.sequence()
    try:
        (scores,) = lm.forward([(sequence, DraftTree.chain(ids), Want(logits="none", hidden=reads))])
    finally:
        sequence.release()
    return scores.hidden


def compare(ours: Tally, theirs: Tally, figure: str, looping: Sequence[bool], seed: int = 0) -> dict[str, Any]:
    """By how much a figure of `ours` is above that of `theirs`, for each of GROUPS that has prompts: the difference
    with the lower and the upper end of its 95%; and what that of all prompts says."""
    above, below = parts(figure)
    paired(looping, *(side.counts[name] for side in (ours, theirs) for name in (above, below)))
    record: dict[str, Any] = {"figure": figure}
    for group, chosen in groups(looping).items():
        lists = [_of(side.counts[name], chosen) for side in (ours, theirs) for name in (above, below)]
        if not chosen:
            continue
        weights = draws(len(chosen), seed)
        figures = ratios(weights, lists[0], lists[1]) - ratios(weights, lists[2], lists[3])
        record[group] = [round(value, 4) for value in interval(figures)]
    _, low, high = record["all"]
    return record | {"says": "higher" if low > 0 else "lower" if high < 0 else "undecided"}


def groups(looping: Sequence[bool]) -> dict[str, list[int]]:
    """Which prompts are of which of GROUPS."""
    numbers = range(len(looping))
    apart = ([n for n in numbers if looping[n]], [n for n in numbers if not looping[n]])
    return dict(zip(GROUPS, (list(numbers), *apart), strict=True))


def _of(counts: Sequence[float], chosen: Sequence[int]) -> Floats:
    return np.array(counts, dtype=np.float64)[list(chosen)]
