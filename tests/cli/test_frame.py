"""The frame around all commands: help without torch, errors in one line, pipes that break."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import segue
from segue import catalog
from segue.cli import app, main, settings
from segue.data import Settings

from .conftest import Call

SEGUE = [sys.executable, "-m", "segue"]
LIGHT = """
import sys
from segue.cli import main
for arguments in (["--help"], ["generate", "--help"], ["run", "--help"], ["methods"], ["methods", "plain"], ["train"]):
    assert main(arguments) == 0
assert main(["generate", "Hello", "--method", "lookahed"]) == 2
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_help_and_lists_do_without_torch() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], check=True, capture_output=True)


def test_no_arguments_show_the_help(call: Call) -> None:
    result = call()
    assert result.code == 0
    assert all(command in result.out for command in ("generate", "chat", "run", "methods", "train"))


def test_version(call: Call) -> None:
    assert call("--version").out == f"segue {segue.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["generat"], "'generate'"),
        (["generate", "--temprature", "1"], "--temperature"),
        (["generate", "x", "--method", "lookahed"], "lookahead"),
        (["generate", "x", "--method", "lookahead", "--set", "windw=3"], "window"),
        (["methods", "prompt_lokup"], "prompt_lookup"),
        (["train", "mni"], "mini"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(call: Call, arguments: list[str], nearest: str) -> None:
    assert nearest in call(*arguments).error()


def test_every_setting_is_a_flag_with_its_own_default_and_help() -> None:
    flags = {f.name: f for f in settings.fields()}
    python_only = {"constraint"}
    assert list(flags) == [name for name in Settings.names() if name not in python_only]
    for field in dataclasses.fields(Settings):
        if field.name in python_only:
            continue
        flag = flags[field.name]
        assert flag.comment
        assert flag.type == field.type
        if field.default is not dataclasses.MISSING:
            assert flag.default == field.default


def test_help_shows_the_comment_and_the_default(call: Call) -> None:
    text = " ".join(call("generate", "--help").out.replace("│", "").split())
    assert "keep the smallest set of this mass [default: (1.0)]" in text


def test_debug_shows_the_traceback_of_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_DEBUG", "1")
    with pytest.raises(ValueError, match="lookahead"):
        main(["methods", "lookahed"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(catalog, "entries", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["methods"])


def test_markup_and_newlines_in_messages_are_harmless(call: Call) -> None:
    assert "[red]x y[/red]" in call("methods", "[red]x\ny[/red]").error().replace("\\n", " ")


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen([*SEGUE, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait() == 141


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*SEGUE, "methods"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device\n"


def test_the_page_names_only_flags_that_exist(call: Call) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    commands = [[c.callback.__name__] for c in app.registered_commands]
    for group in app.registered_groups:
        commands += [[group.name, c.callback.__name__] for c in group.typer_instance.registered_commands]
    known = "".join(call(*command, "--help").out for command in commands)
    flags = set(re.findall(r"--[a-z][a-z-]+", page)) - {"--help", "--version"}
    assert "--retry-errors" in flags
    assert {flag for flag in flags if flag not in known} == set()
