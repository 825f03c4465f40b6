"""Contestants that live in another Python, since what they are installed with does not go with ours.

Each is a process at the far end of a pipe (workers/serve.py). The time that counts is by the worker's clock, from token
ids to token ids, as it is for everyone else: of the pipe, and of the pause in which its threads come to rest before it
replies, a user of the engine sees nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.data import Settings, Stats
from segue.models.cost import cache_folder

WORKERS = Path(__file__).parent / "workers"
LOADING, ANSWERING = 3600.0, 600.0  # seconds after which a worker is given up: an export of a large model takes long
FAREWELL = 5.0  # seconds that it has to end
LAST = 8  # lines of a dead worker's complaints that are shown


@dataclass(frozen=True)
class Engine:
    """What can be driven from afar."""

    module: str  # what its Python must be able to import
    worker: str  # the file in workers/
    kinds: tuple[str, ...]  # each is a contestant


ENGINES = {
    "onnxruntime-genai": Engine("onnxruntime_genai", "genai_onnxruntime", ("fp32", "int8", "int4")),
    "openvino-genai": Engine(
        "openvino_genai",
        "genai_openvino",
        ("fp32", "bf16", "int8", "int4", "fp32 prompt lookup", "bf16 prompt lookup"),
    ),
}


@dataclass(frozen=True)
class Place:
    """Where an engine is found, and which of its kinds take part."""

    python: str
    kinds: tuple[str, ...]


def check(name: str, kinds: list[str], python: str) -> Place:
    """What to start: all kinds where none is named, in our own Python where that is empty. ValueError where there is no
    such kind, or where that Python cannot import the engine."""
    engine = ENGINES[name]
    wrong = next((kind for kind in kinds if kind not in engine.kinds), None)
    if wrong is not None:
        raise ValueError(f"--peers {name}:{wrong} is unknown: choose from {', '.join(engine.kinds)}")
    return Place(_python(name, engine.module, python), tuple(kinds) or engine.kinds)


def _python(name: str, module: str, python: str) -> str:
    way = f"--peers {name}=PYTHON with the Python of a virtual environment that has it (docs/cli.md has the lines)"
    if not python:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"the peer {name} is not installed here: name it as {way}")
        return sys.executable
    path = Path(python).expanduser().absolute()  # not resolved: a link is what makes it an environment's
    question = f"import importlib.util as u; print('no' if u.find_spec({module!r}) is None else 'yes')"
    try:
        asked = subprocess.run(
            [path, "-c", question], capture_output=True, text=True, timeout=60, env=_environment(str(path)), check=False
        )
        said = asked.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    if said not in ("yes", "no"):
        raise ValueError(f"--peers {name}={python}: that is no Python; give {way}")
    if said == "no":
        raise ValueError(f"--peers {name}={python}: that Python has no {module}; give {way}")
    return str(path)


@dataclass
class Elsewhere:
    """A worker process as a contestant."""

    name: str
    command: list[str]
    patience: float = ANSWERING
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # of the last answer, by the worker's clock

    def __post_init__(self) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        self._peak = 0
        self._worker = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            errors="replace",
            env=_environment(self.command[0]),
            start_new_session=True,  # an export that it has started ends with it
        )

    def load(self, patience: float = LOADING, **what: Any) -> None:
        """Tell the worker what to load."""
        self.versions = self._ask(what, patience, "versions", dict)["versions"]

    def answer(self, prompt: list[int], settings: Settings) -> tuple[list[int], Stats | None]:
        names = ("max_tokens", "ignore_eos", "temperature", "seed")
        request = {"prompt": prompt} | {n: getattr(settings, n) for n in names}
        reply = self._ask(request, self.patience, "tokens", list)
        self.seconds = reply["seconds"]
        return reply["tokens"], None

    def forget(self) -> None:
        pass

    def peak_memory(self) -> int:
        """Peak bytes of the worker when it last answered."""
        return self._peak

    def close(self) -> None:
        """End the worker: it goes by itself when nobody can ask any more, or is killed."""
        try:
            self._worker.communicate(timeout=FAREWELL)
        except subprocess.TimeoutExpired:
            self._kill()
            self._worker.communicate()
        finally:
            self._complaints.close()

    def _ask(self, request: dict[str, Any], patience: float, key: str, kind: type) -> dict[str, Any]:
        sent, received = self._worker.stdin, self._worker.stdout
        assert sent is not None
        assert received is not None
        begin = time.monotonic()
        watch = threading.Timer(patience, self._kill)
        watch.start()
        try:
            sent.write(json.dumps(request) + "\n")
            sent.flush()
            line = received.readline()
        except OSError:  # it died before it read
            line = ""
        finally:
            watch.cancel()
        passed = time.monotonic() - begin
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(FAREWELL)
            code = self._worker.returncode
            ended = f"ended with code {code}" if code is not None else "fell silent"
            what = f"was given up after {patience:g} seconds" if passed >= patience else ended
            raise ValueError(f"the peer {self.name} {what}{self._last()}")
        try:
            reply: dict[str, Any] = json.loads(line)
            right = isinstance(reply[key], kind) and (key != "tokens" or 0 < reply["seconds"] <= passed)
            self._peak = int(reply["peak"])
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise ValueError(f"the peer {self.name} answered what is no answer: {line[:80].strip()!r}{self._last()}")
        return reply

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)

    def _last(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return "".join(f"\n  {line}" for line in lines[-LAST:])


@contextlib.contextmanager
def elsewhere_peers(
    name: str, place: Place, folder: Path, eos_ids: frozenset[int], threads: int
) -> Iterator[list[Elsewhere]]:
    """One for each kind of an engine, loaded, and ended afterwards. `folder` holds a transformers model."""
    peers, cache = [], exports(folder)
    with contextlib.ExitStack() as stack:
        for kind in place.kinds:
            peer = Elsewhere(f"{name} {kind}", [place.python, str(WORKERS / "serve.py"), ENGINES[name].worker])
            stack.enter_context(contextlib.closing(peer))
            peer.load(folder=str(folder), cache=str(cache), kind=kind, threads=threads, eos=sorted(eos_ids))
            peers.append(peer)
        yield peers


def exports(folder: Path) -> Path:
    """Where the exports of a model are kept."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return cache_folder() / "exports" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _environment(python: str) -> dict[str, str]:
    """Ours, but another Python finds its packages by itself."""
    ours = python == sys.executable
    return {k: v for k, v in os.environ.items() if ours or k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
