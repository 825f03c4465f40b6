"""Which way of proposing is accepted furthest when each verifies the same number of nodes.

1. An arm is a method at a node budget. Its figure is accepted tokens per target forward, so that no clock is read and
   every machine finds the same; with it nodes per forward and accepted tokens per node.
2. Counted are the rounds that begin with room for the deepest tree of the comparison: the end of the output cuts none.
3. A claim says that one arm is accepted further than another. It is judged by the difference of the two ratios of sums
   over prompts and its 95% interval, by a paired bootstrap over prompts (both arms keep the prompts that were drawn).
4. Arms whose nodes per forward differ by more than TOLERANCE are no comparison at equal budget: the claim is flagged
   with who had fewer. Fewer for the arm that is said to be better only makes its case stronger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segue.api import method_name
from segue.bench.bootstrap import Floats, Interval, draws, interval, paired, ratios
from segue.data import Scores, Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method
from segue.models.run import Decoder, Forward, Prefill, Run

TOLERANCE = 0.02  # of the nodes per forward
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a method, and what it is called in tables."""

    name: str
    method: Any  # a Method


@dataclass(frozen=True)
class Claim:
    """The arm that is said to be accepted further, and the one that it is said to beat."""

    better: str
    worse: str


@dataclass(frozen=True)
class Counts:
    """What was counted on every prompt, (P,) each: accepted tokens, target forwards and verified nodes."""

    accepted: Floats
    forwards: Floats
    nodes: Floats
    draft_forwards: float = 0.0  # per round of whole answers: what equal budgets of the target may cost the draft

    def mean(self) -> dict[str, float]:
        """The figures over all prompts: ratios of sums."""
        accepted, forwards, nodes = (float(part.sum()) for part in (self.accepted, self.forwards, self.nodes))
        return {
            "accepted": accepted / forwards if forwards else 0.0,
            "nodes": nodes / forwards if forwards else 0.0,
            "per_node": accepted / nodes if nodes else 0.0,
            "draft_forwards": self.draft_forwards,
        }

    def as_dict(self) -> dict[str, Any]:
        lists = {name: getattr(self, name).tolist() for name in ("accepted", "forwards", "nodes")}
        return lists | {"draft_forwards": self.draft_forwards}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Counts:
        accepted, forwards, nodes = (np.array(record[k], dtype=np.float64) for k in ("accepted", "forwards", "nodes"))
        return cls(accepted, forwards, nodes, record["draft_forwards"])


def count(
    lm: LM, method: Any, prompts: Sequence[Sequence[int]], settings: Settings, reach: int = 0, seeds: int = 1
) -> Counts:
    """Decode the prompts and count the rounds that began with room for `reach` drafted tokens and the one after.

    Every prompt and each of the `seeds` (one where nothing is drawn) has a source of randomness of its own, the same
    for every method.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} is not allowed: at least 1")
    totals = np.zeros((3, len(prompts)))
    drafts = rounds = 0
    for seed in range(seeds if settings.temperature else 1):
        engine, jobs = Engine(), []
        for number, prompt in enumerate(prompts):
            run = Run(lm, list(prompt), dataclasses.replace(settings, seed=seed * len(prompts) + number))
            jobs.append(engine.add(run, _counted(method.run(run), run, reach, totals[:, number])))
        engine.drain(jobs)
        for job in jobs:
            drafts += job.run.stats.draft_forwards
            rounds += job.run.stats.rounds
    return Counts(totals[0], totals[1], totals[2], drafts / rounds if rounds else 0.0)


def _counted(decoder: Decoder[None], run: Run, reach: int, totals: Floats) -> Decoder[None]:
    """A run's decoder, its rounds added to `totals` (3,): accepted tokens, forwards, nodes."""
    scores: Scores | None = None
    before: tuple[int, int] | None = None  # accepted tokens before the round that is under way, and its nodes

    def book() -> None:
        if before is not None:
            totals[:] += run.stats.accepted - before[0], 1, before[1]

    while True:
        try:
            request = next(decoder) if scores is None else decoder.send(scores)
        except StopIteration:
            book()
            return
        if isinstance(request, Forward | Prefill) and request.sequence is run.sequence and not run.sequence.drafts:
            book()
            before = None
            if isinstance(request, Forward) and run.remaining - 1 >= reach:
                before = run.stats.accepted, len(request.tree) - 1 - sum(request.tree.scored_only)
        scores = yield request


def gap(ours: Counts, theirs: Counts, over: str = "forwards", seed: int = 0) -> Interval:
    """Difference of accepted tokens per forward (or per node: `over` "nodes"), with the ends of its 95% interval."""
    weights = draws(paired(ours.accepted, theirs.accepted), seed)
    first, second = (ratios(weights, counts.accepted, getattr(counts, over)) for counts in (ours, theirs))
    return interval(first - second)


def judge(claim: Claim, counts: dict[str, Counts]) -> dict[str, Any]:
    """A claim's record: the difference with its interval, what that says, and whether the budgets were equal."""
    ours, theirs = counts[claim.better], counts[claim.worse]
    difference, low, high = gap(ours, theirs)
    nodes = [counts.mean()["nodes"] for counts in (ours, theirs)]
    return {
        "better": claim.better,
        "worse": claim.worse,
        "difference": difference,
        "low": low,
        "high": high,
        "says": "as claimed" if low > 0 else "the other way" if high < 0 else "undecided",
        "nodes": nodes,
        "budget": _budget(*nodes),
        "per_node": list(gap(ours, theirs, "nodes")),
    }


def _budget(ours: float, theirs: float) -> str:
    if max(ours, theirs) <= (1 + TOLERANCE) * min(ours, theirs):
        return "equal"
    return "fewer" if ours < theirs else "more"


def ordering(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    arms: Sequence[Arm],
    claims: Sequence[Claim],
    *,
    settings: Settings,
    temperatures: Sequence[float] = (0.0, 1.0),
    reach: int = 0,
    seeds: int = 1,
    known: Callable[[Arm, float, Callable[[], Counts]], Counts] = lambda arm, temperature, make: make(),
    progress: Progress = lambda what, done, total: None,
) -> dict[str, list[dict[str, Any]]]:
    """The table of a comparison: "arms", one record for each arm and temperature, and "claims", one for each claim and
    temperature. `known` may keep counts from one call to the next: it gives those of an arm, by `make` if need be."""
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"two arms have one name among {', '.join(names)}: name each differently")
    for claim in claims:
        for name in (claim.better, claim.worse):
            if name not in names:
                raise ValueError(f"a claim is about {name!r}, which is no arm: there are {', '.join(names)}")
    table: dict[str, list[dict[str, Any]]] = {"arms": [], "claims": []}
    for step, temperature in enumerate(temperatures):
        own = dataclasses.replace(settings, temperature=temperature)
        counts: dict[str, Counts] = {}
        for number, arm in enumerate(arms):
            progress("decoding", step * len(arms) + number, len(arms) * len(temperatures))

            def make(method: Any = arm.method, own: Settings = own) -> Counts:
                return count(lm, method, prompts, own, reach, seeds)

            counts[arm.name] = known(arm, temperature, make)
            record = {"arm": arm.name, "method": spelled(arm.method), "temperature": temperature}
            forwards = int(counts[arm.name].forwards.sum())
            table["arms"].append(record | {"prompts": len(prompts), "forwards": forwards} | counts[arm.name].mean())
        table["claims"] += [{"temperature": temperature} | judge(claim, counts) for claim in claims]
    return table


def spelled(method: Any) -> str:
    """A method's name and the fields that are not at their defaults, those of methods that it holds too."""
    if not isinstance(method, Method):
        return str(method)
    fields: Any = dataclasses.fields(method)  # type: ignore[arg-type]

    def changed() -> Iterator[str]:
        for field in fields:
            value = getattr(method, field.name)
            if value != field.default and not isinstance(value, LM):
                yield f"{field.name}={spelled(value)}"

    return f"{method_name(method)}({', '.join(changed())})"


def markdown(table: dict[str, list[dict[str, Any]]]) -> str:
    """A table for reading: its arms, then its claims."""
    lines = ["| arm | T | forwards | nodes | accepted | per node | draft forwards |", "|---|---|---|---|---|---|---|"]
    for r in table["arms"]:
        lines.append(
            f"| {r['arm']} | {r['temperature']:g} | {r['forwards']:,} | {r['nodes']:.2f} | {r['accepted']:.3f} "
            f"| {r['per_node']:.3f} | {r['draft_forwards']:.1f} |"
        )
    lines += ["", "| said to be accepted further | than | T | difference [95%] | it comes out | nodes |"]
    lines.append("|---|---|---|---|---|---|")
    for r in table["claims"]:
        nodes = "equal" if r["budget"] == "equal" else f"**{r['budget']}**: {r['nodes'][0]:.1f}, {r['nodes'][1]:.1f}"
        lines.append(
            f"| {r['better']} | {r['worse']} | {r['temperature']:g} "
            f"| {r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] | {r['says']} | {nodes} |"
        )
    return "\n".join(lines)
