"""`segue run --engine ray` on a cluster of two workers: every line is answered once, and as it is here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from segue.cli import spread, tasks

from ..conftest import Sessions
from .conftest import Call, records, write_lines

WORKERS = "ray::MapWorker"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # every process of it imports torch


@pytest.fixture(scope="module")
def head(sessions: Sessions) -> Iterator[str]:
    """The address of a cluster of two cores."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    ray = Path(sys.executable).with_name("ray")
    sessions.start(
        *(ray, "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--port={ports[0]}"),
        *(f"--ray-client-server-port={ports[1]}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"),
        *("--object-store-memory=100000000", "--disable-usage-stats"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = time.monotonic() + 120
    for port in ports:  # the second is the last thing that comes up
        while time.monotonic() < last:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
    return f"127.0.0.1:{ports[0]}"


def same(one: Path, other: Path) -> None:
    """Equal in all that is not time."""
    found, expected = records(one), records(other)
    assert set(found) == set(expected)
    for key, record in expected.items():
        assert found[key].get("error") == record.get("error")
        for part in ("text", "tokens", "finish_reason"):
            assert found[key].get(part) == record.get(part), key
        # What shares a forward differs from one run to the next, and with it the last bits.
        details = [[one["logprob"] for one in answer.get("logprobs", [])] for answer in (found[key], record)]
        assert details[0] == pytest.approx(details[1], abs=1e-4)


def lines(count: int, tokens: int) -> list[Any]:
    """Of every kind that there is: two of them fail."""
    methods: list[dict[str, Any]] = [
        {},
        {"method": "plain", "logprobs": 1},
        {"method": "lookahead", "set": {"window": 2}},
        {"temperature": 0.9, "seed": 3},
        {"choices": ["yes", "no"]},
    ]
    made: list[Any] = [
        {"id": f"p{i}", "prompt": f"prompt {i}", "max_tokens": tokens} | methods[i % len(methods)] for i in range(count)
    ]
    return [*made, b"oops", {"id": "cold", "prompt": "x", "temperature": -1}]


def wait_for_answers(out: Path, process: subprocess.Popen[bytes], least: int) -> None:
    last = time.monotonic() + 200
    while time.monotonic() < last and process.poll() is None:
        if out.exists() and out.read_bytes().count(b"\n") >= least:
            return
        time.sleep(0.01)
    raise AssertionError("there were no answers to see")


def test_a_worker_that_is_killed_costs_nothing(call: Call, sessions: Sessions, tiny: Path, tmp_path: Path) -> None:
    """With a cluster of its own, and shards of both kinds."""
    shards = tmp_path / "shards"
    shards.mkdir()
    write_lines(shards / "a.jsonl", lines(200, 40))
    rows = [{"id": f"q{i}", "prompt": f"row {i}", "max_tokens": 30 if i % 2 else None} for i in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), shards / "b.parquet")
    shared = [shards, "-m", tiny, "--dtype", "float32", "--max-running", 4, "--max-tokens", 9]
    assert call("run", *shared, "-o", tmp_path / "here.jsonl").code == 1
    out = tmp_path / "out.jsonl"
    process = sessions.start(
        *(sys.executable, "-m", "segue", "run", *shared, "-o", out, "--engine", "ray", "--workers", 2, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_answers(out, process, 8)
    victim = sessions.members(process, WORKERS)[0]
    os.kill(victim, signal.SIGKILL)
    then = len(out.read_bytes().splitlines())
    assert then < 200
    said, noise = process.communicate(timeout=250)
    assert process.returncode == 1, noise.decode()
    summary = json.loads(said)
    parts = {key: summary[key] for key in ("prompts", "answered", "skipped", "failed", "workers")}
    assert parts == {"prompts": 262, "answered": 262, "skipped": 0, "failed": 2, "workers": 2}
    same(out, tmp_path / "here.jsonl")
    assert sessions.gone(process)


ASKING = """
import os, sys, threading, time
import ray, segue.cli
from ray.data._internal.execution.streaming_executor import StreamingExecutor

step, threads = StreamingExecutor._scheduling_loop_step, []

def ask():
    core = ray._private.worker.global_worker.core_worker
    while True:
        core.get_all_reference_counts()
        time.sleep(0.01)

def slow(self, topology):
    if not threads:
        threads.append(threading.Thread(target=ask, daemon=True))
        threads[0].start()
    time.sleep(3 if os.path.getsize(out) > before else 0)  # once there are answers
    return step(self, topology)

out = sys.argv[sys.argv.index("-o") + 1]
before = os.path.getsize(out)
StreamingExecutor._scheduling_loop_step = slow
sys.exit(segue.cli.main())
"""


def test_killed_or_stopped_the_same_command_continues(
    call: Call, sessions: Sessions, head: str, tiny: Path, tmp_path: Path
) -> None:
    """Stopped while the planner is slow and a thread asks the cluster on and on: neither chooses the exit code."""
    write_lines(tmp_path / "in.jsonl", lines(200, 40))
    out = tmp_path / "out.jsonl"
    shared = [tmp_path / "in.jsonl", "-m", tiny, "--dtype", "float32", "--max-running", 4]
    command = ["run", *shared, "-o", out, "--engine", "ray", "--address", head, "--json"]
    first = sessions.start(sys.executable, "-m", "segue", *command, stderr=subprocess.DEVNULL)
    wait_for_answers(out, first, 4)
    first.kill()
    first.wait()
    survived = out.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1
    assert survived < 202
    second = sessions.start(sys.executable, "-c", ASKING, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_answers(out, second, survived + 4)
    second.send_signal(signal.SIGINT)
    said, noise = second.communicate(timeout=100)
    assert second.returncode == 128 + signal.SIGINT, noise.decode()
    summary = json.loads(said)
    after = out.read_bytes().count(b"\n")
    assert (summary["skipped"], summary["answered"]) == (survived, after - survived)
    assert f"interrupted: {after} answers of 202 in {out}; continue with the same command" in noise.decode()
    # The file is the same wherever answers come from, so the rest may be answered here.
    assert call("run", *shared, "-o", out).code == 1
    assert call("run", *shared, "-o", tmp_path / "here.jsonl").code == 1
    same(out, tmp_path / "here.jsonl")


@pytest.mark.filterwarnings("ignore")  # Ray's
def test_a_line_that_kills_its_workers_fails_alone(
    call: Call, head: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fragile(spread.Worker):
        def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
            answered = super().__call__(block)
            if answered["answers"].to_pylist() != [[]] and any(b"poison" in line for line in block["line"].to_pylist()):
                os.kill(os.getpid(), signal.SIGKILL)
            return answered

    monkeypatch.setattr(spread, "Worker", Fragile)
    monkeypatch.setattr(spread, "ATTEMPTS", 1)  # each takes a new process
    lines = [{"id": i, "prompt": "poison" if i == 3 else f"prompt {i}", "max_tokens": 3} for i in range(8)]
    write_lines(tmp_path / "in.jsonl", lines)
    out = tmp_path / "out.jsonl"
    result = call("run", tmp_path / "in.jsonl", "-o", out, "-m", tiny, "--engine", "ray", "--address", head)
    assert result.code == 1, result.err
    found = records(out)
    assert set(found) == set(range(8))
    assert [key for key, record in found.items() if "error" in record] == [3]
    assert "1 workers ended" in found[3]["error"]


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_the_command_is_one_line(call: Call, head: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    shared = [tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--engine", "ray", "--address", head]
    assert "has room for 1 CPU 2 times, and 3 times is wanted" in call("run", *shared, "--workers", 3).err
    assert "no model at nowhere" in call("run", *shared, "-m", "nowhere").err
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_key_of_an_answer() -> None:
    assert tasks.key({"id": "a"}) == "a"
    assert tasks.key({"id": None, "line": 4}) == ("line", 4)
