"""Serves one engine over a pipe, in whatever Python it is installed: `python serve.py ENGINE`, a file beside this one.

A JSON object a line on stdin, one a line on stdout: first what to load, answered by {"versions"}, then prompts,
answered by {"tokens", "seconds"}; both with "peak", the most memory that this process has held, in bytes. What an
engine prints goes to stderr; an exception ends the process, and so does the end of stdin.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, then answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native code prints to file descriptor 1 too

    def reply(**fields: Any) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        replies.write(json.dumps(fields | {"peak": peak}) + "\n")
        replies.flush()

    engine: Any = importlib.import_module(sys.argv[1])
    model = None
    for line in sys.stdin:
        request = json.loads(line)
        if model is None:
            out = _exported(engine, request["folder"], Path(request["cache"]), request["kind"])
            model = engine.load(str(out), request["kind"], request["threads"], request["eos"])
            reply(versions={package: version(package) for package in engine.PACKAGES})
        else:
            begin = time.perf_counter()
            tokens = model.answer(**request)
            seconds = time.perf_counter() - begin
            _rest()
            reply(tokens=tokens, seconds=seconds)


def _exported(engine: Any, folder: str, cache: Path, kind: str) -> Path:
    """The model at `folder` in the engine's own format, written once, whole or not at all."""
    name = engine.PACKAGES[0]
    out: Path = cache / f"{name}-{version(name)}" / engine.FORMATS[kind]
    if not out.is_dir():
        staging = out.with_name(f"{out.name}.{os.getpid()}.tmp")
        staging.parent.mkdir(parents=True, exist_ok=True)
        try:
            command = [sys.executable, "-m", *engine.export(folder, str(staging), engine.FORMATS[kind])]
            code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
            if code:
                sys.exit(code)  # it has said why
            staging.replace(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return out


def _rest() -> None:
    """Until threads that spin after their work have gone to sleep: whoever answers next needs the cores."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.004)
        if time.process_time() - before < 0.001:
            return


if __name__ == "__main__":
    main()
