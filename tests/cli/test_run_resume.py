"""`segue run`: every id answered exactly once, whatever happens on the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segue.cli import answers

from .conftest import Call, prompts, records, write_lines


def test_resume_answers_only_what_is_left(run: Call, out: Path) -> None:
    run(prompts(6))
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    result = run(None, "--json")
    assert json.loads(result.out)["skipped"] == 3
    assert out.read_bytes().startswith(b"".join(lines[:3]))
    assert set(records(out)) == {f"p{i}" for i in range(6)}
    complete = out.read_bytes()
    again = run(None, "--json")
    assert (again.code, json.loads(again.out)["answered"]) == (0, 0)
    assert out.read_bytes() == complete


@pytest.mark.parametrize("left", [1, 5, 8, 40])
def test_a_torn_line_is_cut_wherever_it_tore(run: Call, out: Path, left: int) -> None:
    run(prompts(1))
    out.write_bytes(out.read_bytes()[:left])
    assert run(None).code == 0
    assert set(records(out)) == {"p0"}


def test_errors_stay_until_they_are_retried(run: Call, out: Path, tmp_path: Path) -> None:
    lines = [*prompts(2), {"id": "bad", "prompt": "x", "temperature": -1}]
    assert run(lines).code == 1
    fixed = [*prompts(2), {"id": "bad", "prompt": "x"}]
    assert run(fixed).code == 1
    assert "error" in records(out)["bad"]
    out.chmod(0o640)
    before = out.read_bytes().splitlines()
    link = tmp_path / "link.jsonl"
    out.rename(tmp_path / "real.jsonl")
    out.symlink_to(tmp_path / "real.jsonl")
    assert run(fixed, "--retry-errors").code == 0
    assert out.is_symlink()
    assert not link.exists()
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o777 == 0o640
    assert out.read_bytes().splitlines()[:2] == [line for line in before if b"error" not in line]
    assert "text" in records(out)["bad"]
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "real.jsonl"}


def test_a_broken_line_cannot_clash_with_a_number(run: Call, out: Path) -> None:
    assert run([b"oops", {"id": 1, "prompt": "x"}]).code == 1
    assert set(records(out)) == {(1,), 1}
    assert run(None, "--json").code == 1


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"Dear diary\n", "line 1 is not an answer"),
        (b"Dear diary", "line 1 is not an answer"),
        (b'{"id": "p0"}\n', "line 1 is not an answer"),
        (b'{"id": "zz", "text": ""}\n', "line 1 answers 'zz', which is not in the input"),
        (b'{"id": "p0", "text": ""}\n{"id": "p0", "text": ""}\n', "line 2 answers 'p0' a second time"),
        (b'{"id": "p0", "text": ""}\n{"id": ["x"], "text": ""}\n', "line 2 is not an answer"),
        (b'{"id": "p0", "text": ""}\nDear', "line 2 is not an answer"),
    ],
)
def test_a_foreign_output_is_refused_and_untouched(run: Call, out: Path, content: bytes, fragment: str) -> None:
    out.write_bytes(content)
    assert fragment in run(prompts(2)).error()
    assert out.read_bytes() == content


def test_two_jobs_on_one_output_are_refused(run: Call, out: Path) -> None:
    with out.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another segue run is writing" in run(prompts(1)).error()


def test_a_full_device_is_one_line(call: Call, tiny: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", prompts(2))
    result = call("run", tmp_path / "in.jsonl", "-o", "/dev/full", "-m", tiny, "--max-tokens", 2)
    assert result.error().startswith("error: cannot write /dev/full: No space left on device")


@pytest.mark.parametrize("room", [0, 1, 700, 1500])
def test_a_full_disk_leaves_whole_lines(run: Call, out: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    left = room

    def write(file: int, data: memoryview) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os_write(file, data[:left])
        left -= written
        return written

    os_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(answers.os, "write", write)
        message = run(prompts(6)).error()
    saved = records(out)
    assert f"No space left on device; {len(saved)} answers are safe there" in message
    assert run(None).code == 0
    assert set(records(out)) == {f"p{i}" for i in range(6)}
    assert saved.items() <= records(out).items()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_job_between_lines(
    run: Call, out: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    handler = signal.getsignal(number)
    write = answers.Answers.write

    def interrupt(self: answers.Answers, key: Any, record: dict[str, Any]) -> None:
        if len(self.done) == 1:
            os.kill(os.getpid(), number)
        write(self, key, record)

    with monkeypatch.context() as patch:
        patch.setattr(answers.Answers, "write", interrupt)
        result = run(prompts(9), "--max-running", 2, "--json")
    assert result.code == code
    # The two that ran together were finished in the same step, so both were written.
    assert f"interrupted: {len(records(out))} answers of 9 in " in result.err
    assert "continue with the same command" in result.err
    assert 2 <= len(records(out)) < 9
    assert json.loads(result.out)["answered"] == len(records(out))
    assert signal.getsignal(number) is handler
    assert run(None).code == 0
    assert len(records(out)) == 9


def test_kill_9_loses_and_repeats_nothing(run: Call, out: Path, tiny: Path, tmp_path: Path) -> None:
    lines = [{"id": f"p{i}", "prompt": f"prompt {i}", "max_tokens": 40} for i in range(120)]
    write_lines(tmp_path / "in.jsonl", lines)
    command = [
        sys.executable,
        "-m",
        "segue",
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "-m",
        str(tiny),
        "--max-running",
        "4",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.stat().st_size > 2000:
                break
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    survived = out.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1
    assert 0 < survived < 120
    assert json.loads(run(None, "--json").out)["skipped"] == survived
    assert set(records(out)) == {line["id"] for line in lines}
