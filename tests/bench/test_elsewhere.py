"""A contestant in another Python: what it answers, every way in which it can fail, and that it never stays behind.

The worker is written here; the shipped one is tried with an engine of our own making. Real engines are not needed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segue.bench import elsewhere
from segue.bench.contest import contest
from segue.bench.elsewhere import WORKERS, Elsewhere, Place, check, elsewhere_peers, exports
from segue.bench.session import check_peers
from segue.data import Settings

ECHO = """
import json, sys, time
print("loading", file=sys.stderr)
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if number == 0:
        reply = {"versions": {"echo": "1"}}
    else:
        reply = {"tokens": request["prompt"][::-1][: request["max_tokens"]], "seconds": 1e-6}
        %s
    print(json.dumps(reply | {"peak": 1000 * number}), flush=True)
"""
ENGINE = """
import os
PACKAGES = ("pip",)
FORMATS = {"loud": "text"}
def export(folder, out, form):
    return ["shutil_copy", folder, out]
def load(out, kind, threads, eos):
    print("engines talk", flush=True)
    os.system("echo native code too")
    return Model(open(os.path.join(out, "config.json")).read())
class Model:
    def __init__(self, text):
        self.text = text
    def answer(self, prompt, max_tokens, ignore_eos, temperature, seed):
        print("and talk")
        return [len(self.text), *prompt]
"""


@contextmanager
def worker(folder: Path, turn: str = "pass", patience: float = 20.0) -> Iterator[Elsewhere]:
    script = folder / "worker.py"
    script.write_text(ECHO % turn)
    peer = Elsewhere("echo", [sys.executable, str(script)], patience)
    try:
        peer.load()
        yield peer
    finally:
        peer.close()
    assert peer._worker.returncode is not None


def test_it_answers_by_its_own_clock_and_ends(tmp_path: Path) -> None:
    with worker(tmp_path, "time.sleep(0.02)") as peer:
        assert peer.versions == {"echo": "1"}
        (row,) = contest([peer], [[1, 2, 3], [4]], Settings(max_tokens=2), rounds=2)
        assert row.tokens == [[3, 2], [4]]
        assert row.seconds == [[1e-6, 1e-6]] * 2
        assert row.growth == 4000  # a thousand more with each of four answers
    assert peer._worker.returncode == 0


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("print('out of memory', file=sys.stderr); sys.exit(3)", r"echo ended with code 3\n  loading\n  out of memory"),
        ("sys.stdout.close(); import os; os.close(1); time.sleep(60)", "echo fell silent"),
        ("print('hello')", "echo answered what is no answer: 'hello'"),
        ("sys.stdout.buffer.write(b'\\xff\\n')", "no answer"),
        ("reply = []; print(7)", "no answer: '7'"),
        ("del reply['seconds']", "no answer"),
        ("reply['seconds'] = 9e9", "no answer"),
        ("reply['tokens'] = None", "no answer"),
    ],
)
def test_a_worker_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: str, message: str) -> None:
    monkeypatch.setattr(elsewhere, "FAREWELL", 0.5)
    with worker(tmp_path, turn) as peer, pytest.raises(ValueError, match=message):
        peer.answer([1], Settings())


def test_a_worker_that_was_killed_is_told_when_it_is_asked_again(tmp_path: Path) -> None:
    with worker(tmp_path) as peer:
        peer._worker.kill()
        peer._worker.wait()
        for _ in range(2):
            with pytest.raises(ValueError, match="ended with code -9"):
                peer.answer(list(range(100_000)), Settings())


def test_a_worker_that_hangs_is_given_up_with_its_children(tmp_path: Path) -> None:
    turn = "import subprocess as s; c = s.Popen(['sleep', '60']); print(c.pid, file=sys.stderr, flush=True); c.wait()"
    begin = time.monotonic()
    with worker(tmp_path, turn, patience=1.0) as peer, pytest.raises(ValueError, match="given up after 1 sec") as told:
        peer.answer([1], Settings())
    assert time.monotonic() - begin < 15
    child = int(str(told.value).split()[-1])
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_shipped_worker_exports_once_and_keeps_its_pipe_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, model = tmp_path / "workers", tmp_path / "model"
    workers.mkdir()
    model.mkdir()
    (model / "config.json").write_text("{}")
    shutil.copy(WORKERS / "serve.py", workers)
    (workers / "toy.py").write_text(ENGINE)
    copier = tmp_path / "modules"
    copier.mkdir()
    (copier / "shutil_copy.py").write_text("import shutil, sys; print('exporting'); shutil.copytree(*sys.argv[1:3])")
    monkeypatch.setenv("PYTHONPATH", str(copier))  # handed on to our own Python only
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(elsewhere, "WORKERS", workers)
    monkeypatch.setitem(elsewhere.ENGINES, "toy", elsewhere.Engine("json", "toy", ("loud",)))
    for _ in range(2):
        with elsewhere_peers("toy", Place(sys.executable, ("loud",)), model, frozenset({0}), 1) as (peer,):
            assert peer.name == "toy loud"
            assert peer.versions.keys() == {"pip"}
            assert peer.answer([5], Settings())[0] == [2, 5]
            assert peer.seconds > 0
            assert peer.peak_memory() > 1_000_000
        (copier / "shutil_copy.py").write_text("raise SystemExit('exported twice')")
    (model / "config.json").write_text("{ }")
    with (
        pytest.raises(ValueError, match=r"toy loud ended with code 1\n  exported twice"),
        elsewhere_peers("toy", Place(sys.executable, ("loud",)), model, frozenset(), 1),
    ):
        pass
    left = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert not [name for name in left if name.endswith(".tmp")]


def test_an_export_belongs_to_the_files_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = exports(tmp_path)
    assert exports(tmp_path) == first
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert exports(tmp_path) != first


def test_what_a_user_may_get_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "python"
    text.write_text("#!/bin/sh\necho 3.11\n")
    text.chmod(0o755)
    for name, message in (
        ("vllm", "'vllm' is unknown: choose from transformers, llama.cpp, onnxruntime-genai, openvino-genai"),
        ("transformers=/usr/bin/python3", "runs in our own Python"),
        ("llama.cpp:f16", "runs in our own Python"),
        ("onnxruntime-genai:bf16", "onnxruntime-genai:bf16 is unknown: choose from fp32, int8, int4"),
        ("onnxruntime-genai=/nowhere/python", "no Python; give --peers onnxruntime-genai=PYTHON"),
        (f"openvino-genai={tmp_path}", "no Python"),
        (f"openvino-genai={text}", "no Python"),
    ):
        with pytest.raises(ValueError, match=message):
            check_peers(name)
    monkeypatch.setitem(elsewhere.ENGINES, "toy", elsewhere.Engine("no_such_module", "toy", ()))
    with pytest.raises(ValueError, match="has no no_such_module"):
        check("toy", [], sys.executable)
    with pytest.raises(ValueError, match="not installed here"):
        check("toy", [], "")
    monkeypatch.setitem(elsewhere.ENGINES, "toy", elsewhere.Engine("json", "toy", ("a", "b")))
    assert check("toy", [], "") == check("toy", ["a", "b"], sys.executable) == Place(sys.executable, ("a", "b"))
    monkeypatch.setattr("segue.bench.session.PEERS", ("transformers", "toy"))
    assert check_peers(" transformers,toy:b,") == {"transformers": None, "toy": Place(sys.executable, ("b",))}
