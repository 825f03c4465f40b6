"""A batch job: requests from lines, answers to lines, through one engine."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, BinaryIO, Self

from segue import catalog
from segue.api import DEFAULT_METHOD, Model, Request, make_settings
from segue.cli import tasks
from segue.cli.answers import Answers
from segue.cli.tasks import Task
from segue.data import Completion
from segue.models import conversation
from segue.models.conversation import Form
from segue.models.engine import Engine
from segue.models.lm import LM

CONSTRAINTS = {"json_schema", "regex", "grammar", "choices"}


@dataclass
class Planner:
    """Makes requests of tasks: what the command line says, overridden by what the line says."""

    method: str | None
    fields: Mapping[str, Any]
    settings: Mapping[str, Any]
    form: Form | None = None  # set once the model is there
    _methods: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """ValueError where the command line is wrong by itself."""
        self._method({})
        make_settings(**self.settings)

    def request(self, task: Task) -> Request:
        """ValueError says what is wrong with the line."""
        if task.error is not None:
            raise ValueError(task.error)
        body = task.body
        for key in body:
            meant = None if tasks.known(key) else tasks.near(key)
            if meant is not None:
                raise ValueError(f"there is no {key!r}: did you mean {meant}?")
        own = {name: body[name] for name in tasks.setting_names() if name in body}
        inherited = dict(self.settings)
        if CONSTRAINTS & own.keys():  # a text has one constraint: the line's
            inherited = {name: value for name, value in inherited.items() if name not in CONSTRAINTS}
        settings = make_settings(**{**inherited, **own})
        if ("prompt" in body) == ("messages" in body):
            raise ValueError('a line has either "prompt" or "messages"')
        prompt = body.get("prompt")
        if "messages" in body:
            assert self.form is not None
            settings = replace(settings, **self.form.ends(settings))
            prompt = self.form.encode(conversation.check(body["messages"]))
        elif not isinstance(prompt, str | list):
            raise ValueError(f"the prompt {prompt!r} is neither text nor a list of token ids")
        return Request(prompt, self._method(body), settings)

    def _method(self, body: Mapping[str, Any]) -> Any:
        """One object for all lines that ask for the same method with the same fields."""
        name, fields = body.get("method", self.method or DEFAULT_METHOD), body.get("set", {})
        if not isinstance(name, str) or not isinstance(fields, dict):
            raise ValueError('"method" is a name, and "set" an object of its fields')
        if "method" not in body:
            fields = {**self.fields, **fields}
        key = json.dumps([name, fields], sort_keys=True)
        if key not in self._methods:
            self._methods[key] = catalog.build(name, **fields)
        return self._methods[key]


class Job:
    """Answers every task that has no answer yet."""

    def __init__(self, lm: LM, planner: Planner, answers: Answers, total: int, engine: Engine) -> None:
        planner.form = Form(lm)
        self.planner = planner
        self.answers = answers
        self.engine = engine
        self.model = Model(lm, engine=lambda: engine)
        self.tokens = 0
        self._bar = Bar(answers, total)
        self._open: dict[int, Task] = {}  # position among the requests -> its line

    def run(self, source: BinaryIO) -> None:
        """Lines are written in the order in which they finish."""
        with self._bar:
            # Twice as many as run at a time, so that the engine always finds the next one waiting.
            for number, answer in self.model.batch(self._requests(source), ahead=2 * self.engine.max_running):
                task = self._open.pop(number)
                if isinstance(answer, Completion):
                    self.tokens += answer.stats.tokens
                    self._write(task, answer.as_dict())
                else:
                    self._fail(task, answer)

    def _requests(self, source: BinaryIO) -> Iterator[Request]:
        number = 0
        for task in tasks.read(source):
            if task.key in self.answers.done:
                continue
            try:
                request = self.planner.request(task)
            except ValueError as error:
                self._fail(task, error)
                continue
            self._open[number] = task
            number += 1
            yield request

    def _fail(self, task: Task, error: Exception) -> None:
        message = str(error)
        if not isinstance(error, ValueError):
            # A bug, or a device that is out of memory: the other lines go on, but nobody shall overlook it.
            traceback.print_exception(error)
            message = f"{type(error).__name__}: {error}"
        self._write(task, {"error": message})

    def _write(self, task: Task, result: Mapping[str, Any]) -> None:
        self.answers.write(task.key, {**task.head(), **result})
        self._bar.update(self.tokens)


class Bar:
    """A progress bar on stderr where that is a terminal."""

    def __init__(self, answers: Answers, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._answers = answers
        self._began = time.perf_counter()
        note = TextColumn("{task.fields[note]}")
        columns = (BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(),
                             redirect_stdout=False)  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=len(answers.done), note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, tokens: int) -> None:
        note = f"{tokens / (time.perf_counter() - self._began):,.1f} tokens/s"
        if self._answers.failed:
            note += f", {len(self._answers.failed):,} failed"
        self._bar.update(self._task, completed=len(self._answers.done), note=note)
