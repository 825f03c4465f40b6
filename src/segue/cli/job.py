"""A batch job: requests from lines, answers to lines, through one engine."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from segue import catalog
from segue.api import DEFAULT_METHOD, Model, Request, make_settings
from segue.cli import tasks
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
    """Answers tasks through one engine; `write` is given each answer as it is finished."""

    def __init__(self, lm: LM, planner: Planner, engine: Engine, write: Callable[[Task, dict[str, Any]], None]) -> None:
        planner.form = Form(lm)
        self.planner = planner
        self.engine = engine
        self.model = Model(lm, engine=lambda: engine)
        self._write = write
        self._open: dict[int, Task] = {}  # position among the requests -> its line

    def run(self, asked: Iterable[Task]) -> None:
        """Lines are written in the order in which they finish."""
        # Twice as many as run at a time, so that the engine always finds the next one waiting.
        for number, answer in self.model.batch(self._requests(asked), ahead=2 * self.engine.max_running):
            task = self._open.pop(number)
            if isinstance(answer, Completion):
                self._write(task, {**task.head(), **answer.as_dict()})
            else:
                self._fail(task, answer)

    def _requests(self, asked: Iterable[Task]) -> Iterator[Request]:
        number = 0
        for task in asked:
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
        self._write(task, {**task.head(), "error": message})
