from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from segue.api import Model
from segue.cli import chat, report
from segue.data import Completion, Settings
from segue.models.conversation import STOP, Form

from .conftest import Call

TEMPLATE = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}<assistant>"""


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that reach the model, as text."""
    seen: list[str] = []
    stream = Model.stream

    def spy(self: Model, prompt: list[int], *rest: Any, **settings: Any) -> Generator[str, None, Completion]:
        seen.append(self.lm.decode(prompt))
        return stream(self, prompt, *rest, **settings)

    monkeypatch.setattr(Model, "stream", spy)
    return seen


def test_a_conversation_in_the_plain_form(call: Call, tiny: Path, lm: Model, prompts: list[str]) -> None:
    result = call("chat", "-m", tiny, "--max-tokens", 6, stdin=b"Hello?\nAnd now?\n")
    first = lm.generate("User: Hello?\nAssistant:", max_tokens=6, stop=[STOP]).text.strip()
    second = f"User: Hello?\nAssistant: {first}\nUser: And now?\nAssistant:"
    assert prompts == ["User: Hello?\nAssistant:", second]
    assert result.code == 0
    assert result.out == f"{first}\n{lm.generate(second, max_tokens=6, stop=[STOP]).text.lstrip()}\n"
    assert result.err.count("(cut after 6 tokens; --max-tokens allows more)") == 2


def test_an_answer_ends_where_the_user_would_speak(lm: Model) -> None:
    assert Form(lm.lm).ends(Settings(stop=("x",))) == {"stop": ("x", STOP)}


def test_a_chat_template_is_used(call: Call, broken: Path, prompts: list[str]) -> None:
    (broken / "chat_template.jinja").write_text(TEMPLATE)
    result = call("chat", "-m", broken, "--max-tokens", 4, "--json", stdin=b"Hello?\nBye\n")
    said = json.loads(result.out.splitlines()[0])["text"]
    assert prompts == ["<user>Hello?\n<assistant>", f"<user>Hello?\n<assistant>{said}\n<user>Bye\n<assistant>"]


def test_a_template_may_refuse(call: Call, broken: Path) -> None:
    (broken / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    result = call("chat", "-m", broken, stdin=b"Hello?\n")
    assert result.error() == "error: the chat template of broken refuses these messages: not today\n"


def test_json_is_one_object_a_turn(call: Call, tiny: Path) -> None:
    result = call("chat", "-m", tiny, "--max-tokens", 4, "--json", stdin=b"a\nb\n")
    turns = [json.loads(line) for line in result.out.splitlines()]
    assert [turn["turn"] for turn in turns] == [1, 2]
    assert all(set(turn) == {"turn", "text", "tokens", "finish_reason", "stats"} for turn in turns)


def test_commands(call: Call, tiny: Path, prompts: list[str]) -> None:
    lines = b"/stats\na\n/method lookahead window=3\nb\n/stats\n/reset\nc\n/exit\nd\n"
    result = call("chat", "-m", tiny, "--max-tokens", 4, stdin=lines)
    assert result.code == 0
    assert len(prompts) == 3
    assert prompts[1].startswith("User: a\nAssistant: ")
    assert prompts[2] == "User: c\nAssistant:"
    for part in ("no answer yet", "the method is lookahead now", "last answer: lookahead: 4", "2 answers · 8 tokens"):
        assert part in result.err


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (b"/method lookahed", "did you mean lookahead"),
        (b"/method lookahead windw=2", "did you mean window"),
        (b"/method", "/method needs a name"),
        (b"/quit", "there is no command /quit"),
        (b"x" * 300, "context of 256"),
    ],
)
def test_a_bad_line_leaves_the_conversation_as_it_was(
    call: Call, tiny: Path, prompts: list[str], line: bytes, fragment: str
) -> None:
    result = call("chat", "-m", tiny, "--max-tokens", 2, stdin=line + b"\nHello\n")
    assert result.code == 2
    assert fragment in result.err
    assert prompts[-1] == "User: Hello\nAssistant:"


def test_the_oldest_turns_go_when_the_context_is_full(call: Call, tiny: Path, prompts: list[str]) -> None:
    turn = "x" * 70
    result = call("chat", "-m", tiny, "--max-tokens", 20, stdin=f"{turn}1\n{turn}2\n{turn}3\n".encode())
    assert "the context of 256 tokens is full: the oldest 1 turn left out" in result.err
    assert prompts[1].startswith(f"User: {turn}1\n")
    assert prompts[2].startswith(f"User: {turn}2\n")
    assert all(len(prompt) <= 256 for prompt in prompts)


def test_ctrl_c_stops_one_answer_only(
    call: Call, tiny: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(report, "show", show)
    result = call("chat", "-m", tiny, "--max-tokens", 30, stdin=b"Hello\nAgain\n/stats\n")
    assert result.code == 0
    assert "(stopped; what was said so far stays in the conversation)" in result.err
    said = "".join(shown[:2]).strip()
    assert prompts[1] == f"User: Hello\nAssistant: {said}\nUser: Again\nAssistant:"
    assert "so far: 1 answer · 30 tokens" in result.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_terminal_survives_ctrl_c_and_leaves_on_ctrl_d(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = iter([KeyboardInterrupt(), "Hello", EOFError()])

    def read(prompt: str) -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr("builtins.input", read)
    assert list(chat._terminal()) == ["Hello"]
    assert "Ctrl-D leaves" in capsys.readouterr().err
