"""The engine: drives any number of decoders and packs their pending requests of one model into one forward.

A step takes a drafting model before a target and a small one before a large one, so that targets pack well; first the
forwards in order of arrival, then prefill chunks, within the token budget. Runs are admitted while the rows they may
need fit the memory budget. A request that fails takes down its own run only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from segue.data import DraftTree, NumericError, Scores, Want
from segue.models.job import Job, Piece, book, owners, rows_of
from segue.models.lm import Ask
from segue.models.run import Decoder, Forward, Gather, Prefill, Run, Spawn


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
        job = Job(run, decoder, rows_of(run))
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
    def waiting(self) -> int:
        """Runs that wait for memory or for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def reserved(self) -> int:
        """Bytes of cache rows that the admitted runs may need."""
        return self._reserved

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def drain(self, jobs: Iterable[Job] = ()) -> None:
        """Step until every run has ended; the first error of these jobs is raised."""
        while not self.idle:
            self.step()
        for job in jobs:
            if job.error is not None:
                raise job.error

    def steps(self) -> Iterator[None]:
        """Step until every run has ended, pausing after each forward: streaming looks at the runs in between."""
        while not self.idle:
            self.step()
            yield

    def cancel(self, job: Job) -> None:
        """End a run now and free its memory."""
        if job in self._waiting:
            self._waiting.remove(job)
        job.started, job.request, job.pieces = True, None, []
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
                self._fail(pack[0][0].job, error)
            else:  # one of them is to blame: alone, only that one fails
                for piece, size in pack:
                    if piece.job.error is not None:
                        continue
                    try:
                        self._deliver([(piece, size)], self._forward([(piece, size)]))
                    except Exception as alone:
                        self._fail(piece.job, alone)
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

    def _advance(self, job: Job, scores: Any) -> None:
        """Resume a decoder up to its next forward or prefill, or to several of them."""
        try:
            while True:
                request = next(job.decoder) if not job.started else job.decoder.send(scores)
                job.started = True
                if not isinstance(request, Spawn):
                    break
                child = Job(request.run, request.decoder, rows_of(request.run, forked=True))
                self._reserved += child.rows * child.run.lm.bytes_per_row
                job.children.append(child)
                self._running.append(child)
                self._advance(child, None)
                scores = None
            job.request = request
            parts = request.requests if isinstance(request, Gather) else [request]
            job.pieces = [Piece(job, part) for part in parts]
            if not parts:
                raise ValueError("a decoder asked for no forwards at once: ask for one at least")
        except StopIteration:
            job.started, job.request, job.pieces = True, None, []
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.error, job.request, job.pieces = error, None, []
        job.decoder.close()

    def _crowded(self, job: Job) -> bool:
        """Whether a job must wait for others on its model: for their rows of its cache, or for their sequences."""
        lm = job.run.lm
        others = [j for j in self._running if j.run.lm is lm]
        rows, width = (sum(part) for part in zip(*((j.rows, j.run.width) for j in [*others, job]), strict=True))
        full = lm.kv_rows is not None and rows > lm.kv_rows
        return bool(others) and (full or (lm.most_sequences is not None and width > lm.most_sequences))

    def _retire(self) -> None:
        for job in [j for j in self._running if j.finished]:
            self._running.remove(job)
            self._reserved -= job.rows * job.run.lm.bytes_per_row
            job.run.sequence.release()

    def _choose(self) -> list[tuple[Piece, int]]:
        """What the next forward takes, with the rows of each: one model, one set of layers, within the budget."""
        if len(self._running) == 1 and len(self._running[0].pieces) == 1:
            (piece,) = self._running[0].pieces
            if isinstance(piece.request, Forward):
                return [(piece, piece.rows)]
        pending = [piece for job in self._running for piece in job.pieces if piece.scores is None]
        first = min((p.request.sequence for p in pending), key=lambda s: (not s.drafts, s.lm.weight_bytes))
        lm = first.lm
        kind = next(p.request.want.kind for p in pending if p.request.sequence.lm is lm)
        mine = [p for p in pending if p.request.sequence.lm is lm and p.request.want.kind == kind]
        forwards = [p for p in mine if isinstance(p.request, Forward)]
        readers = [p for p in mine if isinstance(p.request, Prefill)]
        # Some room is kept for prompts, so that many decoding runs cannot keep a new one waiting for ever.
        room = self.token_budget - (self.token_budget // 4 if readers else 0)
        pack: list[tuple[Piece, int]] = []
        branches = lm.branches
        for piece in forwards:
            more = 0
            if branches is not None and isinstance(piece.request, Forward):
                more = len(piece.request.tree.leaves()) - 1
            if not pack or (piece.rows <= room and (branches is None or more <= branches)):
                pack.append((piece, piece.rows))
                room -= piece.rows
                branches = None if branches is None else branches - more
        room = self.token_budget - sum(size for _, size in pack)
        # Those that write wait for the whole forward: beside them a long prompt is read in smaller chunks.
        chunk = max(self.token_budget // 4, 1) if pack else self.token_budget
        for piece in readers:
            if room > 0 or not pack:
                pack.append((piece, min(piece.rows, max(room, 1), chunk)))
                room -= pack[-1][1]
        # Served jobs go to the back, so that what did not fit comes first next time.
        served = owners(pack)
        self._running = [j for j in self._running if j not in served] + served
        return pack

    def _forward(self, pack: list[tuple[Piece, int]]) -> list[Scores]:
        asks: list[Ask] = []
        for piece, size in pack:
            request = piece.request
            if isinstance(request, Forward):
                asks.append((request.sequence, request.tree, request.want))
            else:
                chunk = request.tokens[piece.done : piece.done + size]
                last = piece.done + size == len(request.tokens)
                unseen = Want(logits="none", hidden=request.want.hidden, layers=request.want.layers)
                want = request.want if last else unseen
                asks.append((request.sequence, DraftTree.chain(chunk), want))
        self.forwards += 1
        begin = time.perf_counter()
        scores = asks[0][0].lm.forward(asks)
        scores[0].packed.top()  # every run needs it, and a GPU is waited for here
        seconds = time.perf_counter() - begin
        jobs = owners(pack)
        for job in jobs:
            mine = [(piece.request, size) for piece, size in pack if piece.job is job]
            reads = all(isinstance(request, Prefill) for request, _ in mine)
            book(job.run, mine[0][0].sequence, seconds, prefill=reads, rows=sum(size for _, size in mine))
            job.run.sharing = len(jobs)
        return scores

    def _deliver(self, pack: list[tuple[Piece, int]], scores: list[Scores]) -> None:
        for (piece, size), mine in zip(pack, scores, strict=True):
            job, request = piece.job, piece.request
            if job.error is not None:
                continue
            if mine.nodes and not mine.finite():
                trouble = f"{job.run.lm.name} gave NaN or infinite logits: its weights or dtype fail"
                self._fail(job, NumericError(trouble))
                continue
            if isinstance(request, Prefill):
                request.sequence.commit(list(range(size)))
                piece.read(mine, size)
            else:
                piece.scores = mine
        for job in owners(pack):
            if job.error is None and all(piece.scores is not None for piece in job.pieces):
                found = [piece.scores for piece in job.pieces]
                self._advance(job, found if isinstance(job.request, Gather) else found[0])


def free_memory() -> int:
    """Bytes that can be had on the GPU, or on the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    if info.is_file():  # free pages alone would leave out the page cache, which gives way
        lines = info.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
