"""Ray, which spreads work over machines: a cluster started here for one command, or one that runs already.

Ray is imported here only when it is asked for. Its statistics for its makers and its dashboard are off: nothing that
Segue starts calls the outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = "127.0.0.1"
STORE_BYTES = 100_000_000  # shared memory of a cluster started here; texts need little, and what is more goes to disk
REACH_SECONDS = 10.0  # in which a named cluster must answer
PLANNING = ("StreamingExecutor", "iter_threaded", "ray-data-metadata-prefetch")  # how Ray Data calls its threads
PLANNING_SECONDS = 30.0  # in which they have ended

_sessions: list[Path] = []  # folders of the clusters that this process started


@dataclass(frozen=True)
class Places:
    """What is asked of a cluster: so many processes that each hold the model."""

    number: int
    cpus: int
    gpus: int

    def options(self) -> dict[str, Any]:
        """Resources of one process, as Ray names them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def device(self, asked: str | None) -> str | None:
        """Ray shows a process its own GPU only, whatever the number of the one that was asked for."""
        return "cuda" if self.gpus else asked


def kv_budget(given: int | None, cpus: int) -> int | None:
    """Bytes for the cache rows of one process: as given, or its cores' part of half of the machine's free memory, as
    others may be on the machine. A GPU is its process's own: None leaves the engine its default."""
    import torch

    from segue.models.engine import free_memory

    if given is not None or torch.cuda.is_available():
        return given
    cores = os.cpu_count() or 1
    return free_memory() // 2 * min(cpus, cores) // cores


def check_library() -> None:
    """ValueError where Ray, or a part of it that is used here, is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a process without a GPU of its own sees none
    try:
        import pyarrow  # noqa: F401
        import ray.data
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise ValueError(f'Ray needs {error.name}: pip install "segue[ray]"') from None


@contextlib.contextmanager
def connected(address: str | None, number: int | None, cpus: int, device: str | None) -> Iterator[Places]:
    """Be connected to a cluster, which the caller will `leave`: the one at `address` ("auto" for one of this machine),
    or, with None, one of this machine's cores that is ended then.

    `number` processes of `cpus` cores each are wanted, by default as many as there is room for; each has a GPU where
    `device` is one, or is left open and the cluster has GPUs. ValueError where they would not fit.
    """
    for name, value in (("processes", number), ("cores for each", cpus)):
        if value is not None and value < 1:
            raise ValueError(f"{value} {name} are not possible: at least 1")
    check_library()
    import ray

    if address is None:
        if cpus > (machine := os.cpu_count() or 1):
            raise ValueError(
                f"{cpus} cores for each process are more than the {machine} of this machine: ask for fewer"
            )
        cores = (number or max((os.cpu_count() or 1) // cpus, 1)) * cpus
        own = {"num_cpus": cores, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        session = ray.init("local", **own, **_quiet(), _node_ip_address=HERE)
        _sessions.append(Path(session.address_info["session_dir"]))
    else:
        _join(address)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its processes
        yield _places(ray.cluster_resources(), number, cpus, device)


def leave(code: int | None = None) -> None:
    """Leave the cluster, if there is one; with the exit code of a command, by ending this process.

    Ray ends the process of a thread that asks for something after Ray was left, with an exit code of its own, and
    threads of Ray Data may ask at any time. So a command ends as if it were killed, for which a cluster is prepared;
    but all that it started itself ends with it.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    if code is not None:
        _end(code)
    last = time.monotonic() + PLANNING_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(PLANNING):
            thread.join(max(last - time.monotonic(), 0))
    ray.shutdown()


def _end(code: int) -> None:
    """Before a thread learns that the cluster is gone, so is this process."""
    import psutil

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for session in _sessions:
        for spilled in session.glob("ray_spilled_objects*"):  # blocks that the shared memory had no room for
            shutil.rmtree(spilled, ignore_errors=True)
    os._exit(code)


def _quiet() -> dict[str, Any]:
    return {"logging_level": logging.ERROR, "log_to_driver": False}


def _join(address: str) -> None:
    import ray

    _reach(address)
    try:
        ray.init(address, **_quiet())
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "; a cluster that was started with a token wants RAY_AUTH_MODE=token"
        raise ValueError(f"there is no cluster of Ray at {address!r}: {reason}{hint}") from None


def _reach(address: str) -> None:
    """ValueError where nobody listens: Ray itself would try for a minute, and then end the process."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ValueError(f"{address} is for Ray's client, which Ray Data does not run with: from a machine of the "
                         "cluster give HOST:PORT of its head, or auto")  # fmt: skip
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ValueError(f"{address!r} is not the address of a cluster: give HOST:PORT, or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"there is no cluster of Ray at {address!r}: {error}") from None


def _places(found: dict[str, float], number: int | None, cpus: int, device: str | None) -> Places:
    cores, cards = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    gpus = 1 if (device or "cpu").startswith("cuda") or (device is None and cards) else 0
    room = min(cores // cpus, cards) if gpus else cores // cpus
    wanted = number or max(room, 1)
    if wanted > room:
        each = f"{cpus} CPU{'s' * (cpus > 1)}{' and a GPU' * gpus}"
        raise ValueError(
            f"the cluster of {cores} CPUs and {cards} GPUs has room for {each} {room} times, and {wanted} times is "
            f"wanted: ask for fewer{', for fewer cores' * (cpus > 1)}{', or for device cpu' * gpus}"
        )
    return Places(wanted, cpus, gpus)
