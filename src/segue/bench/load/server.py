"""The server that is measured: a process of its own, what it says of itself, and its memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

STARTING, STOPPING = 300.0, 60.0  # seconds
EVERY = 1.0  # seconds between two looks
KEY = "SEGUE_API_KEY"  # environment variable with the key of a server that asks for one
GAUGES = ("kv_bytes", "running", "queue_length", "prefix_hits", "prefix_bytes", "forwards_total")
SUMS = ("tokens_total", "drafted_tokens_total", "accepted_tokens_total")


@contextmanager
def started(model: str, options: list[str]) -> Iterator[tuple[str, int]]:
    """A server of a model on a free port of this machine: its address and its process's number. ValueError with the
    end of its log where it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "segue", "serve", "-m", model, "--port", str(port), *options]
    # A server whose clients are measured needs no keys, whatever the environment says for others.
    environment = {name: value for name, value in os.environ.items() if name != "SEGUE_API_KEYS"}
    with tempfile.TemporaryFile() as log, _ending_on_sigterm():
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + STARTING
            while not _ready(url):
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise ValueError(f"the server did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield url, server.pid
        finally:
            server.terminate()
            try:
                server.wait(STOPPING)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Within the context SIGTERM ends this process as an exception does: no server stays behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def name_of(url: str) -> str:
    """What the server calls its model; ValueError where there is none at the address."""
    try:
        answer = httpx.get(url + "/v1/models", headers=headers(), trust_env=False)
        name: str = answer.raise_for_status().json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"--url {url}: no server answers there as segue serve does ({error}); a key goes into {KEY}"
        ) from None
    return name


def headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def rss(pid: int) -> int:
    """Bytes of a process that are in memory; ValueError where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise ValueError(f"the memory of process {pid} cannot be read: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu(pid: int) -> float:
    """Seconds that the processor has spent on a process: what a busy machine does not change much."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(text: str) -> dict[str, float]:
    """What /metrics tells of the server as a whole."""
    found = dict.fromkeys((*GAUGES, *SUMS), 0.0)
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        base, _, labels = name.removeprefix("segue_").partition("{")
        if base in SUMS if labels else base in GAUGES:
            found[base] += float(value)
    return found


@dataclass
class Watch:
    """Looks at a server now and then."""

    http: httpx.AsyncClient
    pid: int | None  # of the server, where it runs on this machine and its memory is wanted
    begun: float = field(default_factory=time.perf_counter)
    seen: list[dict[str, float]] = field(default_factory=list)

    async def look(self) -> dict[str, float]:
        answer = await self.http.get("/metrics")
        found = {"at": time.perf_counter() - self.begun, **figures(answer.raise_for_status().text)}
        if self.pid is not None:
            found["rss"], found["cpu"] = float(rss(self.pid)), cpu(self.pid)
        self.seen.append(found)
        return found

    async def forever(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def rest(self, seconds: float) -> dict[str, float]:
        """Until the server has nothing to do and holds nothing, `seconds` at most; the last look."""
        end = time.perf_counter() + seconds
        while True:
            found = await self.look()
            if not (found["running"] or found["queue_length"] or found["kv_bytes"]) or time.perf_counter() > end:
                return found
            await asyncio.sleep(0.1)


def during(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """What the server did between two looks."""
    done = {name: after[name] - before[name] for name in ("forwards_total", "prefix_hits", *SUMS)}
    forwards, drafted = done["forwards_total"], done["drafted_tokens_total"]
    spent = {"cpu_seconds": round(after["cpu"] - before["cpu"], 3)} if "cpu" in before else {}
    return spent | {
        "forwards": int(forwards),
        "tokens_per_forward": round(done["tokens_total"] / forwards, 3) if forwards else None,
        "acceptance": round(done["accepted_tokens_total"] / drafted, 3) if drafted else None,
        "prefix_hits": int(done["prefix_hits"]),
    }
