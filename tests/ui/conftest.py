from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import segue
from segue.api import Model

PROMPT = "User: I want to book a table for two.\nAssistant:"
REPORT = "<!doctype html><html><body><h1>A report</h1><script>document.body.innerHTML='ran'</script></body></html>"


@pytest.fixture(scope="session")
def lm() -> Model:
    """The smallest embedded model, in the precision in which equal tokens are promised."""
    return segue.model("mini-draft", dtype="float32")


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A playground of the smallest model, with a report that would like to run a script. It is a process of its own, as
    gradio leaves event loops to the garbage collector, which is an error here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    report = tmp_path_factory.mktemp("ui") / "spec.html"
    report.write_text(REPORT)
    log = report.with_name("log").open("w+")
    command = [sys.executable, "-m", "segue", "ui", "-m", "mini-draft", "--dtype", "float32", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--report", str(report)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                if httpx.get(address + "/reports/0", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
        yield address
        assert server.poll() is None
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()
    said = Path(log.name).read_text()
    assert f"the playground is at {address}" in said
    assert "Traceback" not in said
