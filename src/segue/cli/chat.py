"""`segue chat`: a conversation at the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from segue.cli import flags, report
from segue.cli.settings import with_settings

if TYPE_CHECKING:
    from segue.api import Model
    from segue.cli.interrupt import Signals
    from segue.data import Completion, Stats
    from segue.models.conversation import Form, Message

HELP = "/reset forgets the conversation, /stats shows what it cost, /method NAME [FIELD=VALUE ...] changes the \
method, /exit leaves"


@with_settings
def chat(
    model: flags.Model = None,
    method: flags.Method = None,
    fields: flags.Set = None,
    allow: flags.Allow = None,
    deny: flags.Deny = None,
    profile: flags.Profile = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.Backend = None,
    quantize: flags.Quantize = None,
    invariant: flags.Invariant = False,
    json: flags.Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Talk to a model. Commands: /reset, /stats, /method NAME, /exit. Ctrl-C stops an answer, Ctrl-D leaves.

    From a pipe every line is one turn. With --json every answer is one JSON object a line.
    """
    chosen = flags.method(*flags.from_profile(profile, method, flags.assignments(fields, allow, deny)))
    from segue.api import Model, make_settings
    from segue.cli.interrupt import Signals, StoppableEngine
    from segue.models.conversation import Form
    from segue.models.load import load

    make_settings(**settings)
    options = flags.placed(profile, dtype=dtype, device=device, backend=backend, quantize=quantize, invariant=invariant)
    lm = load(model, **options)
    flags.check_profile(profile, lm)
    flags.tell_quality(lm, model)
    signals = Signals(signal.SIGINT)
    talk = Talk(Model(lm, engine=lambda: StoppableEngine(signals)), Form(lm), chosen, settings, signals, json)
    interactive = sys.stdin.isatty()
    if interactive:
        report.note(HELP)
    for line in _terminal() if interactive else _pipe():
        try:
            if talk.command(line):
                break
        except ValueError as error:
            report.note(f"error: {error}")
            talk.failed = True
    if talk.failed and not interactive:
        raise typer.Exit(2)


def _terminal() -> Iterator[str]:
    import readline  # noqa: F401  (gives `input` editing and a history)

    while True:
        try:
            yield input("> ")
        except EOFError:
            report.note("")
            return
        except KeyboardInterrupt:
            report.note("\nCtrl-D leaves")


def _pipe() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        yield flags.text_of(line, f"line {number} of stdin").rstrip("\r\n")


@dataclass
class Talk:
    """A conversation with everything that may change during it."""

    model: Model
    form: Form
    method: Any
    settings: dict[str, Any]
    signals: Signals
    json: bool
    messages: list[Message] = field(default_factory=list)
    costs: list[Stats] = field(default_factory=list)
    failed: bool = False

    def command(self, line: str) -> bool:
        """Obey a line: a command, or a turn. True when the conversation is over."""
        word, *rest = line.split() or [""]
        if word == "/exit":
            return True
        if word == "/reset":
            self.messages.clear()
            report.note("the conversation is forgotten")
        elif word == "/stats":
            self._statistics()
        elif word == "/method":
            if not rest:
                raise ValueError("/method needs a name; `segue methods` lists them")
            self.method = flags.method(rest[0], flags.assignments(rest[1:]))
            report.note(f"the method is {rest[0]} now")
        elif word.startswith("/"):
            raise ValueError(f"there is no command {word}: {HELP}")
        elif word:
            self._turn(line)
        return False

    def _turn(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            answer = self._answer(said)
        except ValueError:
            self.messages.pop()
            raise
        text = "".join(said) if answer is None else answer.text
        self.messages.append({"role": "assistant", "content": self.form.answer(text)})
        if answer is None:
            report.note("\n(stopped; what was said so far stays in the conversation)")
            return
        self.costs.append(answer.stats)
        if self.json:
            report.show(
                report.as_json({"turn": len(self.costs), **answer.as_dict(), "text": self.form.answer(text)}) + "\n"
            )
        else:
            report.show("\n")
        if answer.finish_reason == "length":
            report.note(f"(cut after {report.counted(answer.stats.tokens, 'token')}; --max-tokens allows more)")

    def _answer(self, said: list[str]) -> Completion | None:
        """Stream the answer to the last message, `said` piece by piece; None where Ctrl-C stopped it."""
        from segue.api import make_settings
        from segue.cli.interrupt import Stopped

        checked = make_settings(**self.settings)
        settings = {**self.settings, **self.form.ends(checked)}
        prompt = self._fit(checked.max_tokens)

        def say(piece: str) -> None:
            shown = piece if said else self.form.first(piece)
            if shown:
                said.append(shown)
            if not self.json:
                report.show(shown)

        self.signals.received = None
        try:
            with self.signals:
                return report.stream(self.model.stream(prompt, self.method, **settings), say)
        except Stopped:
            return None

    def _fit(self, max_tokens: int) -> list[int]:
        """The prompt, with the oldest turns left out where it would leave no room for an answer."""
        context = self.form.lm.context_length
        room = min(max_tokens, context // 4)
        dropped = 0
        while True:
            prompt = self.form.encode(self.messages)
            if len(prompt) + room <= context or len(self.messages) < 3:
                break
            del self.messages[:2]
            dropped += 1
        if dropped:
            turns = report.counted(dropped, "turn")
            report.note(f"(the context of {context} tokens is full: the oldest {turns} left out from here on)")
        return prompt

    def _statistics(self) -> None:
        if not self.costs:
            report.note("no answer yet")
            return
        report.note("last answer: " + report.statistics(self.costs[-1]))
        tokens, seconds = sum(c.tokens for c in self.costs), sum(c.seconds for c in self.costs)
        report.note(
            f"so far: {report.counted(len(self.costs), 'answer')} · {report.counted(tokens, 'token')} · "
            f"{seconds:.2f} s · {tokens / max(seconds, 1e-9):.1f} tokens/s"
        )
