from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Call

# In a process of its own: gradio leaves event loops to the garbage collector, which is an error here.
SERVED = """
import json, sys
from segue.cli import main
from segue.ui import app
app.serve = lambda made, at: print(json.dumps([at.getsockname()[0], [m.cls.__name__ for m in made.user_middleware]]))
for host in ("127.0.0.1", "0.0.0.0"):
    assert main([*sys.argv[1:], "--port", "0", "--host", host]) == 0
"""


def test_what_is_wrong_is_told_before_a_model_is_loaded(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no report at" in call("ui", "--report", tmp_path / "none.html").error()
    other = tmp_path / "x.html"
    other.write_text("{}")
    assert "no HTML page" in call("ui", "--report", other).error()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    assert 'pip install "segue[ui]"' in call("ui", "-m", tmp_path / "no-model").error()


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(call: Call, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = call("ui", "-m", tmp_path / "no-model", "--port", taken.getsockname()[1]).error()
        assert "address already in use; give another --port" in told


def test_other_machines_are_let_in_only_where_that_was_asked_for(tiny: Path) -> None:
    command = [sys.executable, "-c", SERVED, "ui", "-m", str(tiny)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    there, local, note, everywhere, wide = done.stdout.splitlines()
    assert there.startswith("the playground is at http://127.0.0.1:")
    assert json.loads(local) == ["127.0.0.1", ["TrustedHostMiddleware", "Sealed"]]
    assert note.startswith("note: everybody who reaches 0.0.0.0 may use the model")
    assert everywhere.startswith("the playground is at http://0.0.0.0:")
    assert json.loads(wide) == ["0.0.0.0", ["Sealed"]]
