"""A server as a process, and what is read of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from segue.bench.load.server import _ending_on_sigterm, cpu, during, figures, name_of, rss, started
from segue.serve.metrics import Metrics


def test_the_servers_own_metrics_are_read() -> None:
    metrics = Metrics()
    metrics.kv_bytes.set(1024)
    metrics.running.set(3)
    metrics.forwards.inc(10)
    metrics.tokens.labels("plain").inc(7)
    metrics.tokens.labels("auto").inc(13)
    found = figures(metrics.text().decode())
    assert (found["kv_bytes"], found["running"], found["forwards_total"], found["tokens_total"]) == (1024, 3, 10, 20)
    assert found["queue_length"] == 0
    metrics.forwards.inc(10)
    metrics.tokens.labels("plain").inc(30)
    done = during(found, figures(metrics.text().decode()))
    assert done == {"forwards": 10, "tokens_per_forward": 3.0, "acceptance": None, "prefix_hits": 0}


def test_memory_and_time_of_a_process() -> None:
    code = "x = bytearray(50_000_000); x[::4096] = b'1' * 12208; sum(range(3_000_000)); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert rss(process.pid) > 50_000_000
        assert cpu(process.pid) > 0.02
        process.kill()
    assert rss(os.getpid()) > 10**6
    with pytest.raises(ValueError, match="cannot be read"):
        rss(2**22 + 1)


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ValueError, match=r"did not start.*no-such-model"), started("no-such-model", []):
        raise AssertionError("it has started")


def test_sigterm_ends_the_measurement_and_its_server() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ended = []

    def leave() -> None:
        try:
            with _ending_on_sigterm():
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("it goes on")
        finally:
            ended.append(True)

    with pytest.raises(SystemExit) as told:
        leave()
    assert told.value.code == 143
    assert ended
    assert signal.getsignal(signal.SIGTERM) is before


def test_nobody_at_an_address() -> None:
    with pytest.raises(ValueError, match="no server answers there"):
        name_of("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="no server answers there"):
        name_of("nonsense")
