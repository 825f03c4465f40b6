"""The server as a process: uvicorn, its log, and an end that leaves nobody without an answer."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

KEYS = "SEGUE_API_KEYS"  # environment variable with keys, separated by commas


def read_keys(path: Path | None) -> list[str]:
    """API keys: one a line of a file (lines that start with # are notes), and those of the environment."""
    lines = path.read_text().splitlines() if path is not None else []
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if path is not None and not keys:
        raise ValueError(f"{path} has no API key: one a line")
    return keys + [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]


def serve(app: FastAPI, host: str, port: int, *, drain: float, json_log: bool) -> None:
    """Serve until SIGTERM or Ctrl-C. Then no connection is taken any more, and those that are open have `drain`
    seconds to get their answers. After SIGTERM the process ends with exit code 0."""
    signal.signal(signal.SIGTERM, _leave)  # uvicorn raises the signal once more at the end
    logging.basicConfig(level=logging.INFO, format="%(message)s" if json_log else "%(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING if json_log else logging.INFO)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(int(drain), 1),
    )


def _leave(*_: Any) -> None:
    raise SystemExit(0)
