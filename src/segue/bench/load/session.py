"""A load in its phases: known answers, a warm server at rest, one client and many by turns, a crowd, rest again."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from segue.api import Model
from segue.bench.load import figures
from segue.bench.load.client import PATIENCE, Reply, crowd, until
from segue.bench.load.questions import Asking, Known, Mix, Question, askings, known, texts
from segue.bench.load.server import Watch, during, headers
from segue.bench.session import surroundings
from segue.laws.same_tokens import NUMERIC_ERROR
from segue.models.prefixes import LEAST

Progress = Callable[[str, int, int], None]
MANY = 16  # clients against one
EACH = 4  # questions of each of them
RESTING = 15.0  # seconds in which a server must have given everything back
IDLE = 2.5  # seconds after which an idle server has given free memory back to the system


@dataclass(frozen=True)
class Plan:
    """What is asked of a server."""

    source: str  # the model, as `segue serve -m` takes it
    methods: tuple[str, ...]  # of the mixed load
    scaled: tuple[str, ...]  # methods for which many clients are compared with one
    clients: int  # of the mixed load
    minutes: float
    rounds: int  # alternations of one client and many
    max_tokens: int
    prompts: int
    seed: int
    command: str


@dataclass(frozen=True)
class Prepared:
    """The questions with what is known of their answers."""

    askings: list[Asking]
    scaling: list[tuple[list[int], Known]]  # prompts of full length
    surroundings: dict[str, Any]
    error: float  # of a logit in this precision


def prepare(plan: Plan, model: Model, progress: Progress) -> Prepared:
    """Answer offline what will be asked."""
    mixed = askings(model, texts(model.lm, plan.prompts, plan.max_tokens), plan.max_tokens, _named(progress, "offline"))
    # Too short to be kept for others: what is compared is writing, and no turn is shorter for those before it.
    most = min(model.lm.longest_prompt(plan.max_tokens), LEAST - 1)
    prompts = itertools.cycle([asking.prompt[-most:] for asking in mixed])
    scaling = []
    for number, prompt in enumerate(itertools.islice(prompts, MANY * EACH)):
        progress("offline, for scaling", number, MANY * EACH)
        settings: dict[str, Any] = {"max_tokens": plan.max_tokens, "ignore_eos": True, "logprobs": 2}
        scaling.append((prompt, known(model, prompt, **settings)))
    return Prepared(mixed, scaling, surroundings(plan.source, model), NUMERIC_ERROR[model.lm.precision])


def measure(plan: Plan, prepared: Prepared, url: str, name: str, pid: int | None, progress: Progress) -> dict[str, Any]:
    """Load a server; gives everything that the report says."""
    return asyncio.run(_Session(plan, prepared, url, name, pid, progress).run())


class _Session:
    def __init__(
        self, plan: Plan, prepared: Prepared, url: str, name: str, pid: int | None, progress: Progress
    ) -> None:
        self.plan, self.prepared, self.name, self.progress = plan, prepared, name, progress
        self.url, self.pid = url, pid
        self.source = random.Random(plan.seed)
        self.replies: list[Reply] = []

    async def run(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(PATIENCE, pool=None)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers(), timeout=timeout, limits=limits, trust_env=False
        ) as http:
            self.http, self.watch = http, Watch(http, self.pid)
            await self._warm_up()
            base = await self._at_rest()
            scaling = await self._scaling()
            looking = asyncio.create_task(self.watch.forever())
            mixed = await self._mixed()
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking  # a look that failed is told here
            end = await self._at_rest()
        return self._report(base, scaling, mixed, end)

    async def _warm_up(self) -> None:
        """Every sort of request once, many at a time: what a server allocates once is there."""
        questions = self._mix(0)
        first = [[questions.draw() for _ in range(EACH)] for _ in range(self.plan.clients)]
        self.replies += await crowd(self.http, self.name, [iter(own) for own in first])

    async def _at_rest(self) -> dict[str, float]:
        await self.watch.rest(RESTING)
        await asyncio.sleep(IDLE)
        return await self.watch.look()

    async def _scaling(self) -> list[dict[str, Any]]:
        """For each method, streamed and not: one client and many in turns, each with as many questions."""
        ways = list(itertools.product(self.plan.scaled, (False, True)))
        found: dict[tuple[str, bool], dict[int, list[dict[str, Any]]]] = {way: {1: [], MANY: []} for way in ways}
        for turn in range(self.plan.rounds):
            for place, (method, stream) in enumerate(ways):
                self.progress("one and many", turn * len(ways) + place, self.plan.rounds * len(ways))
                for clients in (1, MANY) if turn % 2 == 0 else (MANY, 1):
                    found[method, stream][clients].append(await self._together(clients, turn, method, stream))
        return [
            {
                "method": method,
                "stream": stream,
                "clients": MANY,
                "ratio": figures.ratio(sides[MANY], sides[1]),
                "one": sides[1],
                "many": sides[MANY],
            }
            for (method, stream), sides in found.items()
        ]

    async def _together(self, clients: int, turn: int, method: str, stream: bool) -> dict[str, Any]:
        first = turn % MANY if clients == 1 else 0  # the one client is another of the many each time
        users = [
            [
                Question(f"scaling {method}", self._full(prompt, method), answer, stream=stream)
                for prompt, answer in self.prepared.scaling[client * EACH : (client + 1) * EACH]
            ]
            for client in range(first, first + clients)
        ]
        before = await self.watch.look()
        begin = time.perf_counter()
        replies = await crowd(self.http, self.name, [iter(questions) for questions in users])
        seconds = time.perf_counter() - begin
        after = await self.watch.rest(RESTING)
        self.replies += replies
        return figures.speeds(replies, seconds) | during(before, after)

    def _full(self, prompt: list[int], method: str) -> dict[str, Any]:
        rest = {"temperature": 0, "ignore_eos": True, "method": method}
        return {"prompt": prompt, "max_tokens": self.plan.max_tokens, **rest}

    async def _mixed(self) -> dict[str, Any]:
        """All clients for so many minutes."""
        seconds = 60 * self.plan.minutes
        before = await self.watch.look()
        begin = time.perf_counter()
        shown = asyncio.create_task(self._show(begin, seconds))
        users = [until(begin + seconds, self._mix(1 + i).draw) for i in range(self.plan.clients)]
        replies = await crowd(self.http, self.name, users)
        passed = time.perf_counter() - begin
        shown.cancel()
        after = await self.watch.rest(RESTING)
        self.replies += replies
        whole = {"clients": self.plan.clients, **figures.speeds(replies, passed), **during(before, after)}
        return whole | {"outcomes": figures.outcomes(replies), "kinds": figures.by_kind(replies)}

    async def _show(self, begin: float, seconds: float) -> None:
        while True:
            self.progress("mixed, seconds", min(int(time.perf_counter() - begin), int(seconds)), int(seconds))
            await asyncio.sleep(1)

    def _mix(self, number: int) -> Mix:
        return Mix(self.prepared.askings, self.plan.methods, random.Random(f"{self.plan.seed} {number}"))

    def _report(
        self, base: dict[str, float], scaling: list[dict[str, Any]], mixed: dict[str, Any], end: dict[str, float]
    ) -> dict[str, Any]:
        answers = figures.compared(self.replies, self.prepared.error)
        peak = {name: max(look[name] for look in self.watch.seen) for name in ("kv_bytes", "rss") if name in base}
        return {
            "setting": self._setting(),
            "scaling": scaling,
            "mixed": mixed,
            "outcomes": figures.outcomes(self.replies),
            "answers": answers,
            "memory": {"base": base, "peak": peak, "end": end, "seen": self.watch.seen},
            "faults": figures.faults(self.replies, answers, end),
        }

    def _setting(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "suite": "load",
            **self.prepared.surroundings,
            "url": self.url,
            "methods": list(plan.methods),
            "prompts": len(self.prepared.askings),
            "prompt_tokens": [len(asking.prompt) for asking in self.prepared.askings],
            "max_tokens": plan.max_tokens,
            "minutes": plan.minutes,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "numeric_error": self.prepared.error,
            "command": plan.command,
        }


def _named(progress: Progress, text: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(text, done, total)


def table(report: dict[str, Any]) -> list[list[str]]:
    """Heads, then a row for every way of comparing many clients with one, and the mixed load."""
    heads = [
        "", "tokens/s, one", "tokens/s, many", "ratio", "tokens/forward", "first token p50/p95 ms",
        "between pieces p50/p95 ms", "CPU ms/token, one", "many", "prefix hits",
    ]  # fmt: skip
    rows = [heads]
    for way in report["scaling"]:
        one, many = way["one"], way["many"]
        name = f"{way['method']}, {'streamed' if way['stream'] else 'whole'}, {way['clients']} clients"
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*way["ratio"])
        rows.append(
            [name, f"{_rate(one):.0f}", f"{_rate(many):.0f}", ratio, *_speed(many), _cpu(one), _cpu(many), _hits(many)]
        )
    mixed = report["mixed"]
    name = f"mixed, {mixed['clients']} clients"
    rows.append(
        [name, "-", f"{mixed['tokens_per_second']:.0f}", "-", *_speed([mixed]), "-", _cpu([mixed]), _hits([mixed])]
    )
    return rows


def _rate(parts: Sequence[dict[str, Any]]) -> float:
    return float(sum(part["tokens"] for part in parts) / sum(part["seconds"] for part in parts))


def _cpu(parts: Sequence[dict[str, Any]]) -> str:
    """Milliseconds that the server's process computes for a token."""
    if any("cpu_seconds" not in part for part in parts):
        return "-"
    return f"{1000 * sum(part['cpu_seconds'] for part in parts) / sum(part['tokens'] for part in parts):.2f}"


def _hits(parts: Sequence[dict[str, Any]]) -> str:
    return str(sum(part["prefix_hits"] for part in parts))


def _speed(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Cells of the middle one of several measurements by its tokens per second."""
    part = sorted(parts, key=lambda one: one["tokens_per_second"])[len(parts) // 2]
    yield f"{part['tokens_per_forward']:.2f}" if part["tokens_per_forward"] else "-"
    for name in ("first_token_seconds", "between_pieces_seconds"):
        found = part[name]
        yield f"{1000 * found[0]:.0f} / {1000 * found[1]:.0f}" if found else "-"


def verdict(report: dict[str, Any]) -> str:
    """What the load came to, in a line."""
    answers, requests = report["answers"], sum(report["outcomes"].values())
    near = f", {answers['near_ties']} at a near tie" if answers["near_ties"] else ""
    state = f"{len(report['faults'])} faults" if report["faults"] else "no fault"
    return (
        f"{state} in {requests} requests; {answers['equal']} of {answers['checked']} greedy answers equal plain "
        f"decoding's{near}"
    )
