"""The README's Python example runs and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_example_prints_its_output() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    output = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert output is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    assert printed.getvalue() == output[1]


def test_under_200_lines_and_no_missing_files() -> None:
    assert len(README.splitlines()) < 200
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link
