"""Several servers behind one address: Ray Serve holds a replica of the whole server in each of some processes.

A request goes to one replica, streamed or not; what a replica keeps (prompts that were read, what drafters learned, the
queue and its limit, the metrics) it keeps for itself. A replica that ends takes its open requests with it and is
started again, while the others go on.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from segue import cluster
from segue.address import listen
from segue.serve.faults import log
from segue.serve.recipe import Recipe

APP = "segue"
SPARE = 64  # requests beyond those that run and wait, so that the replica itself refuses what is too much
LAST_SECONDS = 10.0  # that a replica has to end once its requests had their time


def serve(recipe: Recipe, host: str, port: int, *, replicas: int, cpus: int = 1, address: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Then no request is taken any more, and open ones have their time to end.

    With an `address`, `host` and `port` are those of the cluster's head node.
    """
    if not port:
        raise ValueError("port 0 is any free one, and several replicas share one that is known: name it")
    if address is None:
        listen(host, port).close()  # Ray would only say that none of its own came up
    with cluster.connected(address, replicas, cpus, recipe.options.get("device")) as places:
        from ray import serve as ray_serve

        _check_alone(address)
        ended = _signalled()
        options = {"host": host, "port": port}
        ray_serve.start(proxy_location="HeadOnly", http_options=options, logging_config=_quiet())
        try:
            _run(recipe, places)
            log.info("%d replicas serve at http://%s:%d", places.number, host, port)
            ended.wait()
            _drain(recipe.limits.drain + LAST_SECONDS)
        finally:
            ray_serve.shutdown()


def _run(recipe: Recipe, places: cluster.Places) -> None:
    from ray import serve as ray_serve

    place = dict(recipe.options) | {"device": places.device(recipe.options.get("device"))}
    deployment = ray_serve.deployment(ray_serve.ingress(_builder(recipe, place, places.cpus))()).options(
        name="server",
        num_replicas=places.number,
        ray_actor_options=places.options(),
        max_ongoing_requests=recipe.limits.max_queue + recipe.max_running + SPARE,
        graceful_shutdown_timeout_s=recipe.limits.drain + LAST_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
        logging_config=_quiet(),
    )
    try:
        ray_serve.run(deployment.bind(), name=APP, route_prefix="/")
    except RuntimeError as error:
        raise ValueError(f"no replica could start: {_last(str(error))}") from None


def _builder(recipe: Recipe, options: dict[str, Any], threads: int) -> Callable[[], FastAPI]:
    """What makes the server in a replica's process."""
    made = replace(recipe, options=options)

    def build() -> FastAPI:
        import torch
        from ray import serve as ray_serve

        torch.set_num_threads(threads)
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # into Ray's log of the process
        own = replace(made, kv_bytes=cluster.kv_budget(made.kv_bytes, threads))
        return own.make(ray_serve.get_replica_context().replica_id.unique_id)

    return build


def _signalled() -> threading.Event:
    """Set by SIGTERM or Ctrl-C. Ray has its own idea of the first, so this is called when it runs."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _drain(seconds: float) -> None:
    """End the replicas: each finishes the requests that it has."""
    from ray import serve as ray_serve

    ray_serve.delete(APP, _blocking=False)
    last = time.monotonic() + seconds
    while APP in ray_serve.status().applications and time.monotonic() < last:
        time.sleep(0.2)


def _check_alone(address: str | None) -> None:
    """ValueError where the cluster serves already: it has one port, and what is there would have to make room."""
    from ray import serve as ray_serve

    if address is not None and ray_serve.status().proxies:
        raise ValueError(f"Ray Serve runs on the cluster at {address} already: end it with `serve shutdown`, or leave "
                         "--address out")  # fmt: skip


def _last(text: str) -> str:
    """The line of a report that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "Error: " in line]
    return (said or lines)[-1]


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}
