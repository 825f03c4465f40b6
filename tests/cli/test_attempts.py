from __future__ import annotations

import subprocess
import sys

from segue.cli.attempts import Attempts


def test_attempts_are_counted_for_each_batch() -> None:
    attempts = Attempts(3)
    assert [attempts.begin(1) for _ in range(5)] == [True, True, True, False, False]
    assert attempts.begin(2)


def test_its_process_is_small() -> None:
    code = "import sys, segue.cli.attempts; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
