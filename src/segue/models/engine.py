"""The engine: drives any number of decoders and packs their pending requests of one model into one forward.

A step takes a drafting model before a target and a small one before a large one, so that targets pack well; first the
forwards in order of arrival, then prefill chunks, within the token budget. Runs are admitted while the rows they may
need fit the memory budget. A request that fails takes down its own run only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segue.data import DraftTree, Scores, Want
from segue.models.lm import Ask
from segue.models.run import Decoder, Forward, Prefill, Request, Run, Spawn
from segue.models.sequence import Sequence

TREE_ROWS = 128  # provisional rows allowed for on top of a run's tokens


@dataclass(eq=False)
class Job:
    """A run, its decoder, and what it waits for."""

    run: Run
    decoder: Decoder[None]
    rows: int  # cache rows set aside for it
    request: Request | None = None
    done: int = 0  # tokens of a prefill that are read already
    error: BaseException | None = None
    started: bool = False
    children: list[Job] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.started and self.request is None)


class Engine:
    """Runs decoders to the end. Not thread-safe: one thread steps it."""

    def __init__(self, *, token_budget: int | None = None, kv_budget: int | None = None, max_running: int = 64) -> None:
        """`token_budget`: rows of one forward (by default 512 on a CPU, 8192 on a GPU). `kv_budget`: bytes of cache
        rows that admitted runs may need together (half of the free memory by default). `max_running`: runs at a time.
        """
        for name, value in (("token_budget", token_budget), ("kv_budget", kv_budget), ("max_running", max_running)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is not allowed: at least 1")
        gpu = torch.cuda.is_available()
        self.token_budget = token_budget or (8192 if gpu else 512)
        self.kv_budget = kv_budget or free_memory() // 2
        self.max_running = max_running
        self.forwards = 0
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._reserved = 0

    def add(self, run: Run, decoder: Decoder[None]) -> Job:
        """Queue a run. Raises ValueError where it could never be admitted."""
        job = Job(run, decoder, len(run.source) + run.prompt_length + run.max_tokens + TREE_ROWS)
        need = job.rows * run.lm.bytes_per_row
        most = run.lm.kv_rows
        if most is not None and job.rows > most:
            raise ValueError(
                f"the request may need {job.rows} cache rows, and {run.lm.name} was loaded with {most}: "
                "lower max_tokens, shorten the prompt or load it with more kv_rows"
            )
        if need > self.kv_budget:
            raise ValueError(
                f"the request may need {job.rows} cache rows ({need / 1e6:.1f} MB), more than the memory budget of "
                f"{self.kv_budget / 1e6:.1f} MB: lower max_tokens, shorten the prompt or raise kv_budget"
            )
        self._waiting.append(job)
        return job

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def drain(self) -> None:
        """Step until every run has ended."""
        while not self.idle:
            self.step()

    def steps(self) -> Iterator[None]:
        """Step until every run has ended, pausing after each forward: streaming looks at the runs in between."""
        while not self.idle:
            self.step()
            yield

    def cancel(self, job: Job) -> None:
        """End a run now and free its memory."""
        if job in self._waiting:
            self._waiting.remove(job)
        job.started, job.request = True, None
        job.decoder.close()
        self._retire()

    def step(self) -> None:
        """One forward of one model."""
        self._admit()
        if not self._running:
            return
        pack = self._choose()
        try:
            scores = self._forward(pack)
        except Exception as error:
            if len(pack) == 1:
                self._fail(pack[0][0], error)
            else:  # one of them is to blame: alone, only that one fails
                for job, size in pack:
                    try:
                        self._deliver([(job, size)], self._forward([(job, size)]))
                    except Exception as alone:
                        self._fail(job, alone)
        else:
            self._deliver(pack, scores)
        self._retire()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_running:
            job = self._waiting[0]
            need = job.rows * job.run.lm.bytes_per_row
            if self._running and (self._reserved + need > self.kv_budget or self._crowded(job)):
                return
            self._waiting.popleft()
            self._reserved += need
            self._running.append(job)
            self._advance(job, None)
        self._retire()

    def _advance(self, job: Job, scores: Scores | None) -> None:
        """Resume a decoder up to its next forward or prefill."""
        try:
            while True:
                request = next(job.decoder) if not job.started else job.decoder.send(scores)  # type: ignore[arg-type]
                job.started = True
                if not isinstance(request, Spawn):
                    break
                child = Job(request.run, request.decoder, request.run.max_tokens + TREE_ROWS)
                self._reserved += child.rows * child.run.lm.bytes_per_row
                job.children.append(child)
                self._running.append(child)
                self._advance(child, None)
                scores = None
            job.request, job.done = request, 0
        except StopIteration:
            job.started, job.request = True, None
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.error, job.request = error, None
        job.decoder.close()

    def _crowded(self, job: Job) -> bool:
        """Whether a job must wait for others on its model: for their rows of its cache, or for a place among them."""
        lm = job.run.lm
        others = [j.rows for j in self._running if j.run.lm is lm]
        full = lm.kv_rows is not None and job.rows + sum(others) > lm.kv_rows
        return full or (lm.most_running is not None and len(others) >= lm.most_running)

    def _retire(self) -> None:
        for job in [j for j in self._running if j.finished]:
            self._running.remove(job)
            self._reserved -= job.rows * job.run.lm.bytes_per_row
            job.run.sequence.release()

    def _choose(self) -> list[tuple[Job, int]]:
        """The jobs of the next forward with the rows each brings: one model, one set of layers, within the budget."""
        if len(self._running) == 1:
            (job,) = self._running
            if isinstance(job.request, Forward):
                return [(job, len(job.request.tree) - job.request.want.since)]
        pending = [(job, job.request) for job in self._running if isinstance(job.request, Forward | Prefill)]
        first = min((r.sequence for _, r in pending), key=lambda s: (not s.drafts, s.lm.weight_bytes))
        lm = first.lm
        kind = next(request.want.kind for _, request in pending if request.sequence.lm is lm)
        mine = [(j, r) for j, r in pending if r.sequence.lm is lm and r.want.kind == kind]
        forwards = [(job, len(r.tree) - r.want.since) for job, r in mine if isinstance(r, Forward)]
        readers = [(job, len(r.tokens) - job.done) for job, r in mine if isinstance(r, Prefill)]
        # Some room is kept for prompts, so that many decoding runs cannot keep a new one waiting for ever.
        room = self.token_budget - (self.token_budget // 4 if readers else 0)
        pack: list[tuple[Job, int]] = []
        branches = lm.branches
        for job, size in forwards:
            more = 0
            if branches is not None and isinstance(job.request, Forward):
                more = len(job.request.tree.leaves()) - 1
            if not pack or (size <= room and (branches is None or more <= branches)):
                pack.append((job, size))
                room -= size
                branches = None if branches is None else branches - more
        room = self.token_budget - sum(size for _, size in pack)
        for job, size in readers:
            if room > 0 or not pack:
                pack.append((job, min(size, max(room, 1))))
                room -= pack[-1][1]
        # Served jobs go to the back, so that what did not fit comes first next time.
        served = [job for job, _ in pack]
        self._running = [j for j in self._running if j not in served] + served
        return pack

    def _forward(self, pack: list[tuple[Job, int]]) -> list[Scores]:
        asks: list[Ask] = []
        for job, size in pack:
            request = job.request
            if isinstance(request, Forward):
                asks.append((request.sequence, request.tree, request.want))
            elif isinstance(request, Prefill):
                chunk = request.tokens[job.done : job.done + size]
                last = job.done + size == len(request.tokens)
                want = request.want if last else Want(logits="none", layers=request.want.layers)
                asks.append((request.sequence, DraftTree.chain(chunk), want))
        self.forwards += 1
        begin = time.perf_counter()
        scores = asks[0][0].lm.forward(asks)
        scores[0].packed.top()  # every run needs it, and a GPU is waited for here
        seconds = time.perf_counter() - begin
        for (job, _), (sequence, _, _) in zip(pack, asks, strict=True):
            book(job.run, sequence, seconds, prefill=isinstance(job.request, Prefill))
            job.run.sharing = len(pack)
        return scores

    def _deliver(self, pack: list[tuple[Job, int]], scores: list[Scores]) -> None:
        for (job, size), mine in zip(pack, scores, strict=True):
            request = job.request
            if mine.nodes and not mine.finite():
                self._fail(job, ValueError(f"{job.run.lm.name} gave NaN or infinite logits: its weights or dtype fail"))
                continue
            if isinstance(request, Prefill):
                request.sequence.commit(list(range(size)))
                job.done += size
                if job.done < len(request.tokens):
                    continue
            self._advance(job, mine)


def book(run: Run, sequence: Sequence, seconds: float, *, prefill: bool) -> None:
    """Count a forward on the run that asked for it; a shared one is booked in full on everyone who shared it."""
    stats = run.stats
    if sequence.drafts or sequence.lm is not run.lm:
        stats.draft_forwards += 1
        stats.drafting_seconds += seconds
        return
    stats.target_forwards += 1
    stats.prefill_forwards += prefill
    if prefill:
        stats.prefill_seconds += seconds
    else:
        stats.verifying_seconds += seconds


def free_memory() -> int:
    """Bytes that can be had on the GPU, or on the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    if info.is_file():  # free pages alone would leave out the page cache, which gives way
        lines = info.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
