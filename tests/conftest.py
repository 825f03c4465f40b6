"""Tests run two at a time (pytest-xdist), so each keeps to one thread; tiny networks are fastest so anyway."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

# Measured costs go to a folder of this run's own, shared by its tests and the commands they start.
os.environ.setdefault("SEGUE_CACHE", tempfile.mkdtemp(prefix="segue-cache-"))
torch.set_num_threads(1)

# What runs on Ray here is closed to everybody else, and Ray writes no token of its own into the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)


class ByModel(LoadScopeScheduling):
    """What shares a file is run by one process, which makes what it shares once; laws go by the model they are held on,
    and begin, since they take longest."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return file + test.rpartition("-")[2] if test.startswith("test_the_laws_hold[") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModel:
    config.option.loadscopereorder = False
    return ByModel(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "laws" not in item.path.parts)


class Sessions:
    """Commands with all that they start: Ray's processes leave the group of their parent, but never its session."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: object, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [str(word) for word in command]
        self._started.append(subprocess.Popen(words, start_new_session=True, env=environment, **options))
        return self._started[-1]

    def members(self, process: subprocess.Popen[bytes], name: str = "") -> list[int]:
        """Ids of the session's living processes whose command begins with `name`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, *numbers = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                command = (folder / "cmdline").read_text()
            except OSError:  # it has just ended
                continue
            if int(numbers[2]) == process.pid and state != "Z" and command.startswith(name):
                found.append(int(folder.name))
        return found

    def gone(self, process: subprocess.Popen[bytes], seconds: float = 60) -> bool:
        """Whether nothing of a session is left, or will be within so many seconds."""
        last = time.monotonic() + seconds
        while self.members(process) and time.monotonic() < last:
            time.sleep(0.1)
        return not self.members(process)

    def end(self) -> None:
        for process in self._started:
            while found := self.members(process):
                for number in found:
                    try:
                        os.kill(number, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                process.poll()
                time.sleep(0.05)
            process.communicate()


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    """Starts commands; nothing that they started outlives the module."""
    made = Sessions()
    yield made
    made.end()
